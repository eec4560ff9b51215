"""Types and ranges of all config values, checked in one place before anything else.

The code that builds a network, a process or a data source checks which keys it takes and how they depend on each other.
"""

import dataclasses
import math
import numbers
import struct
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from cfgjax.base.errors import UsageError, one_line

MAX_INT = 2**31 - 1  # steps are counted in int32
MAX_PER_CELL = 10_000  # samples in a cell of a picture


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of value. `admits(value)`: whether a value is of this kind. `text` describes the kind in errors."""

    text: str
    admits: Callable[[Any], bool]

    def __or__(self, other: "Kind") -> "Kind":
        return Kind(f"{self.text} or {other.text}", lambda value: self.admits(value) or other.admits(value))


def integer(low: int = 0, high: int = MAX_INT) -> Kind:
    """Returns the kind of integers from low to high inclusive."""
    text = f"an integer of at least {low}" + ("" if high == MAX_INT else f" and at most {high}")
    return Kind(text, lambda v: isinstance(v, numbers.Integral) and not isinstance(v, bool) and low <= int(v) <= high)


def real(text: str = "a number that is finite in float32", within: Callable[[float], bool] = lambda v: True) -> Kind:
    """Returns the kind of numbers that are finite when rounded to float32 and then satisfy `within`."""
    number = lambda v: isinstance(v, numbers.Real) and not isinstance(v, bool)
    return Kind(text, lambda v: number(v) and math.isfinite(in_float32(v)) and within(in_float32(v)))


def several(kind: Kind, text: str, *, least: int = 1, lengths: tuple[int, ...] | None = None) -> Kind:
    """Returns the kind of tuples of another kind, with at least `least` values or with one of `lengths`."""
    fits = lambda v: len(v) >= least if lengths is None else len(v) in lengths
    return Kind(text, lambda v: isinstance(v, (tuple, list)) and fits(v) and all(map(kind.admits, v)))


def one_of(*values: str) -> Kind:
    """Returns the kind that consists of some strings."""
    return Kind(" or ".join(map(repr, values)), lambda v: isinstance(v, str) and v in values)


def in_float32(value: numbers.Real) -> float:
    """Returns a number rounded to float32: 1e39 and 10**400 are infinite, 1e-50 is 0, 1 - 1e-9 is 1."""
    try:
        return struct.unpack("f", struct.pack("f", float(value)))[0]
    except OverflowError:
        return math.inf


NONE = Kind("None", lambda v: v is None)
YES_NO = Kind("True or False", lambda v: isinstance(v, bool))
TEXT = Kind("a non-empty string without NUL", lambda v: isinstance(v, str) and bool(v.strip()) and "\0" not in v)
NUMBER = real()
POSITIVE = real("a number that is finite and above 0 in float32", lambda v: v > 0)
NOT_NEGATIVE = real("a number of at least 0 that is finite in float32", lambda v: v >= 0)
BELOW_ONE = real("a number in [0, 1) in float32", lambda v: 0 <= v < 1)
SHARE = real("a number in [0, 1]", lambda v: 0 <= v <= 1)
COUNT = integer(1)
WIDTH = integer(1, 2**16)  # of a layer: XLA aborts the process where the size of an array overflows
NUMBERS = several(NUMBER, "a non-empty tuple of finite numbers")
ALL_LEFT = Kind("-1 (all that are left)", lambda v: v == -1 and isinstance(v, numbers.Integral))

SETTINGS: dict[str, Kind] = {
    "seed": integer(0, 2**32 - 1),
    "data.source": TEXT,
    "data.kind": one_of("image", "latent"),
    "data.split": TEXT,
    "data.path": TEXT,
    "data.num_classes": integer(1, 2**20),
    "data.image_shape": several(COUNT, "a tuple of 1 or 3 integers of at least 1", lengths=(1, 3)),
    "data.random_flip": YES_NO,
    "data.random_crop": real("a share of the side in (0, 1]", lambda v: 0 < v <= 1),
    "data.low_res_size": COUNT | NONE,
    "data.num_workers": integer(0, 1024),
    "data.worker_timeout_seconds": real("a number of seconds in [1, 10⁹]", lambda v: 1 <= v <= 1e9),
    "data.crop": TEXT | NONE,
    "data.class_order": TEXT,
    "data.data_dir": TEXT | NONE,
    "data.tfds_split": TEXT,
    "data.seed": integer(0, 2**32 - 1),
    "data.num_examples": COUNT,
    "data.means": several(NUMBERS, "a tuple of tuples of finite numbers"),
    "data.stds": several(POSITIVE, "a tuple of finite numbers above 0"),
    "data.weights": several(NOT_NEGATIVE, "a tuple of finite numbers of at least 0"),
    "model.name": TEXT,
    "model.channels": WIDTH,
    "model.multipliers": several(POSITIVE, "a non-empty tuple of finite numbers above 0"),
    "model.depth": integer(1, 1000),
    "model.attention_resolutions": several(COUNT, "a tuple of integers of at least 1", least=0),
    "model.num_heads": WIDTH | NONE,
    "model.head_channels": WIDTH | NONE,
    "model.legacy_attention_order": YES_NO,
    "model.scale_shift": YES_NO,
    "model.resblock_resample": YES_NO,
    "model.learned_resample": YES_NO,
    "model.rescale": YES_NO,
    "model.dropout": BELOW_ONE,
    "model.conditional": YES_NO,
    "model.null_label": YES_NO,
    "model.low_res": YES_NO,
    "model.low_res_noise": YES_NO,
    "model.dtype": one_of("float32", "bfloat16"),
    "model.fused_attention": YES_NO,
    "model.remat": TEXT,
    "model.pool": TEXT,
    "model.num_features": WIDTH,
    "model.width": WIDTH,
    "diffusion.schedule": TEXT | NONE,
    "diffusion.logsnr_min": NUMBER | NONE,
    "diffusion.logsnr_max": NUMBER | NONE,
    "diffusion.betas": TEXT | NONE,
    "diffusion.num_timesteps": integer(2, 1_000_000) | NONE,
    "diffusion.p_uncond": SHARE,
    "diffusion.parametrisation": TEXT,
    "diffusion.weighting": TEXT,
    "diffusion.learned_variance": YES_NO,
    "diffusion.bound_weight": NOT_NEGATIVE,
    "diffusion.bound_steps": integer(2),
    "diffusion.time_sampler": TEXT,
    "diffusion.low_res_logsnr_min": NUMBER | NONE,
    "optimizer.name": TEXT,
    "optimizer.learning_rate": NOT_NEGATIVE,
    "optimizer.b1": BELOW_ONE,
    "optimizer.b2": BELOW_ONE,
    "optimizer.eps": POSITIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.schedule": TEXT,
    "optimizer.warmup_steps": integer(0),
    "optimizer.decay_steps": COUNT | NONE,
    "optimizer.clip_norm": POSITIVE | NONE,
    "ema.rates": several(BELOW_ONE, "a tuple of numbers in [0, 1)", least=0),
    "ema.warmup": YES_NO,
    "train.batch_size": COUNT,
    "train.num_steps": COUNT,
    "train.log_every_steps": COUNT,
    "train.steps_per_dispatch": COUNT,
    "train.accumulate_steps": COUNT,
    "train.max_skipped_in_row": COUNT,
    "train.init_from": TEXT | NONE,
    "checkpoint.every_steps": COUNT,
    "checkpoint.keep_last": COUNT,
    "checkpoint.keep_every_steps": COUNT | NONE,
    "sample.every_steps": COUNT,
    "sample.labels": several(integer(0), "a non-empty tuple of integers of at least 0"),
    "sample.guidance": NUMBERS,
    "sample.per_cell": integer(1, MAX_PER_CELL),
    "sample.num_steps": integer(2) | TEXT,
    "sample.sampler": TEXT,
    "sample.v": SHARE | NONE,
    "sample.eta": SHARE,
    "evaluate.guidance": NUMBERS,
    "evaluate.num_samples": integer(2),
    "evaluate.num_steps": integer(2),
    "evaluate.batch_size": COUNT,
    "evaluate.label_policy": TEXT,
    "evaluate.features": one_of("classifier", "inception", "mixture"),
    "evaluate.classifier": TEXT | NONE,
    "evaluate.reference": TEXT | NONE,
    "evaluate.every_steps": COUNT | NONE,
    "evaluate.every_num_samples": integer(2),
    "evaluate.every_guidance": NUMBERS,
    "mesh.data": COUNT | ALL_LEFT,
    "mesh.fsdp": COUNT | ALL_LEFT,
    "mesh.slices": COUNT,
    "cluster.timeout_seconds": real("a number of seconds in [2, 10⁹]", lambda v: 2 <= v <= 1e9),
    "cluster.start_timeout_seconds": real("a number of seconds in [1, 10⁹]", lambda v: 1 <= v <= 1e9),
}
SECTIONS = {key.partition(".")[0] for key in SETTINGS if "." in key}


def check_settings(config: ConfigDict) -> None:
    """Raises UsageError for the first value of a config that is not of its key's kind."""
    for name, value in config.items():
        if name not in SECTIONS:
            check_value(name, value)
        elif not isinstance(value, ConfigDict):
            raise UsageError(f"{name} is {shown(value)}; need a section, with keys such as {example(name)}")
        else:
            for key, inner in value.items():
                check_value(f"{name}.{key}", inner)


def check_value(key: str, value: object) -> None:
    """Raises UsageError unless the value is of the key's kind."""
    if key in SETTINGS and not SETTINGS[key].admits(value):
        raise UsageError(f"{key} is {shown(value)}; need {SETTINGS[key].text}")


def example(section: str) -> str:
    """Returns the first key of a section."""
    return next(key for key in SETTINGS if key.startswith(f"{section}."))


def shown(value: object) -> str:
    """Returns the text of a value for an error message, on one line and truncated if it is long."""
    try:
        return one_line(repr(value), 80)
    except ValueError:  # Python does not convert integers of thousands of digits
        return "an integer with too many digits"
