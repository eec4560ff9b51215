"""A run small enough to be repeated in a test: points of three Gaussians and a little perceptron."""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from cfgjax.data.sources import registry
from cfgjax.diffusion.prediction import PARAMETRISATIONS
from cfgjax.runs.config import load_file, to_json, variants
from cfgjax.runs.data_settings import DataSettings
from cfgjax.runs.sections import read_section
from cfgjax.runs.settings import Settings

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
WITHOUT = {"base", "own_images"}  # own_images needs a prepared set
FILES = sorted(path for path in EXPERIMENTS.glob("*.py") if path.stem not in WITHOUT)
CONFIGS = {Path(text).name.replace(".py", ""): text for path in FILES for text in variants(path)}
"""{"digits": FILE, "adm:64": FILE:ARGUMENT, …} of all experiments."""


def predictor(eps_fn):
    """predict(z, logsnr, cond) of eps_fn(z, logsnr, label), with or without the channels of a learned variance."""
    return lambda z, logsnr, cond: PARAMETRISATIONS["eps"](eps_fn(z, logsnr, cond["label"]), z, logsnr)


def of_mixture(mixture):
    """bind_params of a `Model` of a mixture's exact predictions."""
    return lambda params: lambda z, logsnr, cond: mixture.predict(z, logsnr, cond["label"])


def mixture_config(**overrides):
    """experiments/mixture.py shrunk to 40 steps on one device; overrides as {"train.batch_size": 8, …}."""
    config = load_file(EXPERIMENTS / "mixture.py")
    shrunk = {
        "data.num_examples": 256,
        "model.width": 32,
        "model.depth": 1,
        "train.batch_size": 16,
        "train.num_steps": 40,
        "train.log_every_steps": 10,
        "train.steps_per_dispatch": 1,
        "optimizer.warmup_steps": 5,
        "checkpoint.every_steps": 10,
        "sample.every_steps": 40,
        "sample.per_cell": 2,
        "sample.num_steps": 4,
        "mesh.data": 8,
    }
    return update(config, {**shrunk, **overrides})


def digits_config(**overrides):
    """experiments/digits.py with a small network and 4 steps."""
    config = load_file(EXPERIMENTS / "digits.py")
    shrunk = {
        "model.depth": 1,
        "model.multipliers": (1,),
        "model.attention_resolutions": (),  # the middle has attention all the same
        "train.batch_size": 16,
        "train.num_steps": 4,
        "train.log_every_steps": 2,
        "train.steps_per_dispatch": 2,
        "checkpoint.every_steps": 2,
        "sample.every_steps": 4,
        "sample.per_cell": 1,
        "sample.num_steps": 3,
        "mesh.data": 8,
    }
    return update(config, {**shrunk, **overrides})


settings = Settings.from_config


def open_source(**keys):
    """The `Dataset` of the keys of config.data."""
    return registry.open_source(read_section(DataSettings, "data", keys))


def update(config, overrides):
    """config with the values of flat keys replaced."""
    config = ConfigDict(config.to_dict())
    config.update_from_flattened_dict(overrides)
    return config


def same_config(a, b):
    """Whether two configs have the same keys, values and types."""
    return to_json(a) == to_json(b) and types_of(a) == types_of(b)


def types_of(config):
    """{key: type} of a config, by flat key."""
    found = {}
    for key in config:
        inner = types_of(config[key]) if isinstance(config[key], ConfigDict) else {}
        found |= {f"{key}.{name}": kind for name, kind in inner.items()} or {key: config.get_type(key)}
    return found


def same_trees(a, b):
    """Whether two trees of arrays are equal bit for bit, and of one structure and dtype."""
    equal = lambda x, y: np.asarray(x).dtype == np.asarray(y).dtype and np.array_equal(x, y)
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(jax.tree.map(equal, a, b))
