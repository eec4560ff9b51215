"""Every experiment file constructs and traces a shrunk step; one of each kind trains it."""

import ast
import functools
import inspect
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIGS, EXPERIMENTS, FILES, open_source, settings, update

from cfgjax.evaluation.report import targets
from cfgjax.jobs.sweep import entries
from cfgjax.models.network import check_network, make_network
from cfgjax.runs.config import flatten, from_json, load_file, to_json
from cfgjax.runs.data_settings import DataSettings
from cfgjax.runs.settings import SECTIONS
from cfgjax.training.loop import Run
from cfgjax.training.state import create_state

DIGITS = sorted(EXPERIMENTS.glob("digits*.py"))
SIZES = {  # ADM's published networks; CFG's are its ε-predictors with a null row
    "imagenet64": 295_899_267 + 4 * 192,
    "imagenet128": 421_522_691 + 4 * 256,
    "adm:64": 295_904_454,
    "adm:128": 421_529_606,
    "adm:256": 553_838_086,
    "adm:512": 558_997_638,
    "adm_classifier:64": 65_438_568,
    "adm_classifier:128": 42_568_040,
    "adm_classifier:256": 54_096_360,
    "adm_classifier:512": 54_448_360,
    "adm_upsampler:256": 311_795_910,
    "adm_upsampler:512": 308_835_270,
}
ABLATIONS = json.loads(Path(targets.__file__).with_name("adm_imagenet256.json").read_text())["ablations"]
PRINTED = {  # the names of the paper's tables → ours
    "channels": "model.channels",
    "depth": "model.depth",
    "heads": "model.num_heads",
    "channels_per_head": "model.head_channels",
    "attention": "model.attention_resolutions",
    "biggan_updown": "model.resblock_resample",
    "rescale_resblock": "model.rescale",
}
BASE_ROW = {"biggan_updown": False, "rescale_resblock": False} | ABLATIONS["rows"][0]
HEADS_ROW = {"channels": 128, "depth": 2, "attention": [32, 16, 8], "biggan_updown": True, "rescale_resblock": False}


@pytest.fixture(params=CONFIGS)
def name(request):
    return request.param


def kind(name):
    """What decides which program the step of an experiment is."""
    config = load_file(CONFIGS[name])
    return config.model.name, config.model.get("low_res"), config.get("diffusion", {}).get("learned_variance")


KINDS = {kind(name): name for name in reversed(CONFIGS)}


def by_default(names, chosen):
    """The parameters of a test of every name; tests of names that are not chosen are slow."""
    return [pytest.param(name, marks=() if name in chosen else pytest.mark.slow) for name in names]


@functools.cache
def network_size(network, image_shape):
    """The number of parameters of a network, which is checked; networks are equal if all of their fields are."""
    return sum(leaf.size for leaf in jax.tree.leaves(check_network(network, image_shape)))


def shrink(config, folder):
    """config with one small step on random data, everything else as it is."""
    small = {"train.batch_size": 8, "train.num_steps": 1, "train.log_every_steps": 1, "train.steps_per_dispatch": 1}
    small |= {"checkpoint.every_steps": 1}
    small |= {"evaluate.every_steps": 1} if settings(config).is_classifier else {"sample.every_steps": 1}
    if "attention_resolutions" in config.model:
        small |= {"model.channels": 64, "model.depth": 1, "model.multipliers": (1,)}
        small |= {"model.attention_resolutions": (2,), "data.image_shape": (2, 2, config.data.image_shape[-1])}
    if config.data.get("low_res_size") is not None:
        small["data.low_res_size"] = 1
    config = update(config, small)
    if config.data.source != "mixture":
        shape, classes, path = config.data.image_shape, config.data.num_classes, folder / "data.npz"
        rng = np.random.default_rng(0)
        np.savez(path, image=rng.integers(0, 256, (8, *shape), np.uint8), label=rng.integers(0, classes, 8))
        kept = {key: value for key, value in config.data.items() if key not in DataSettings.KINDS}
        config.data = type(config)(kept | {"source": "npz", "path": str(path), "num_workers": 0})
    return config


@pytest.mark.parametrize("name", by_default(CONFIGS, {"mixture", "digits"}))
def test_a_shrunk_step_traces(name, tmp_path):
    run = Run(shrink(load_file(CONFIGS[name]), tmp_path), jax.devices()[:1])
    state, metrics = jax.eval_shape(run.dispatch, run.like, run.batches(0), run.step_key)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, run.like)
    assert metrics["loss"].shape == (1,)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS.values())
def test_one_shrunk_step_is_finite_and_changes_the_parameters(name, tmp_path):
    run = Run(shrink(load_file(CONFIGS[name]), tmp_path), jax.devices()[:1])
    state = create_state(run.build_state, run.mesh)
    before = jax.device_get(state.params)
    state, metrics = run.dispatch(state, run.batches(0), run.step_key)
    assert np.isfinite(metrics["loss"]).all()
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, jax.device_get(state.params))
    expected = run.settings.optimizer.warmup_steps == 0  # a warm-up begins at learning rate 0
    assert any(jax.tree.leaves(changed)) == expected


def test_files_state_every_section_and_survive_json(name):
    config = load_file(CONFIGS[name])
    assert set(config) == {"seed", *(name for name in SECTIONS if getattr(settings(config), name) is not None)}
    assert flatten(from_json(to_json(config))) == flatten(config)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_begin_with_a_command_that_runs_them(path):
    names = {text: name.replace(":", "_") for name, text in CONFIGS.items() if name.partition(":")[0] == path.stem}
    commands = [
        f"cfgjax train --config=experiments/{Path(text).name} --workdir=runs/{name}" for text, name in names.items()
    ]
    header = ast.get_docstring(ast.parse(path.read_text()))
    assert any(command in header.splitlines() for command in commands)


def test_recalled_values_are_in_the_files_that_name_them():
    marked = {path.stem: recalled(path.read_text()) for path in FILES}
    assert {name for name, keys in marked.items() if keys} == {"imagenet64", "imagenet128"}
    for name in ("imagenet64", "imagenet128"):
        assert marked[name] <= given_keys(EXPERIMENTS / f"{name}.py")


def recalled(text):
    """The keys in the comment of a file that begins with "Recalled from the paper"."""
    lines = re.findall(r"# Recalled from the paper, .*?: (.*(?:\n *#.*)*)", text)
    return set(re.findall(r"[a-z_]+\.\w+", " ".join(lines)))


def given_keys(path):
    """The keys that an experiment file gives in the call of `denoiser`."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    (call,) = [call for call in calls if getattr(call.func, "id", "") == "denoiser"]
    return {f"{section.arg}.{key.arg}" for section in call.keywords for key in section.value.keywords}


def test_every_value_of_the_network_is_present(name):
    config = load_file(CONFIGS[name])
    net = type(make_network(settings(config)))
    fields = inspect.signature(net).parameters.keys() - {"parent", "name", "num_classes", "out_channels"}
    assert fields == set(config.model.keys()) - {"name"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_networks_of_the_paper_have_its_number_of_parameters(name):
    config = load_file(CONFIGS[name])
    assert network_size(make_network(settings(config)), config.data.image_shape) == SIZES[name]


@pytest.mark.parametrize("path", DIGITS, ids=lambda path: path.stem)
def test_models_and_classifiers_of_the_digits_have_the_same_holdout(path):
    images = [open_source(**load_file(p).data).image for p in (path, EXPERIMENTS / "digits.py")]
    assert np.array_equal(*images) and len(images[0]) == 1498


SWEEP_FILES = sorted((EXPERIMENTS / "sweeps").glob("*.py"))
SWEEPS = {path.stem: entries.load_sweep(path) for path in SWEEP_FILES}
RUNS = {path.stem: dict(entries.named(entries.listed(SWEEPS[path.stem], path), path)) for path in SWEEP_FILES}
SWEPT = [(sweep, name) for sweep, runs in RUNS.items() for name in runs if hasattr(SWEEPS[sweep], "BASE")]


def swept(sweep, name):
    """(the config of a sweep's base, the overrides of one of its runs by flat key)."""
    overrides = RUNS[sweep][name]
    assert all(key.startswith("config.") for key in overrides)
    base = load_file(SWEEPS[sweep].BASE)
    return base, {key.removeprefix("config."): value for key, value in overrides.items()}


@pytest.mark.parametrize(("sweep", "name"), SWEPT)
def test_sweeps_override_known_keys(sweep, name):
    base, overrides = swept(sweep, name)
    assert overrides.keys() <= flatten(base).keys()


@pytest.mark.slow
@pytest.mark.parametrize(("sweep", "name"), SWEPT)
def test_the_networks_of_sweeps_can_be_built(sweep, name):
    config = update(*swept(sweep, name))
    assert network_size(make_network(settings(config)), config.data.image_shape)


def test_the_sweeps_of_the_paper_have_the_rows_of_its_tables():
    rows = targets.load_targets("cfg_imagenet64")["rows"]
    assert {o["config.diffusion.p_uncond"] for o in RUNS["p_uncond"].values()} == {row["p_uncond"] for row in rows}
    assert {o["guidance"] for o in RUNS["guidance"].values()} == {row["w"] for row in rows}


@pytest.mark.parametrize("table", ["rows", "heads"])
def test_the_ablation_has_the_rows_of_the_papers_tables(table):
    """Table 1's rows are changes of its first one; table 2's of the architecture that section 3 tells."""
    first, length = (BASE_ROW, 1_200_000) if table == "rows" else (HEADS_ROW, 700_000)
    runs = [name for name in RUNS["adm_ablation"] if name.startswith("table_2") == (table == "heads")]
    for row, name in zip(ABLATIONS[table], runs, strict=True):
        printed = {PRINTED[key]: value for key, value in (first | row).items() if key in PRINTED}
        base, overrides = swept("adm_ablation", name)
        config = flatten(update(base, overrides))
        made = {key: list(v) if isinstance(v := config[key], tuple) else v for key in printed}
        assert made == printed and config["train.num_steps"] == length
