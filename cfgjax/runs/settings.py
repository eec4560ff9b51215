"""Types and ranges of all config values, checked in one place before anything else.

The code that builds a network, a process or a data source checks which keys it takes and how they depend on each other.
"""

from ml_collections import ConfigDict

from cfgjax.base.errors import UsageError
from cfgjax.runs import options
from cfgjax.runs.value_kinds import (
    ALL_LEFT,
    BELOW_ONE,
    COUNT,
    MAX_PER_CELL,
    NONE,
    NOT_NEGATIVE,
    NUMBER,
    NUMBERS,
    POSITIVE,
    SHARE,
    TEXT,
    WIDTH,
    YES_NO,
    Kind,
    integer,
    one_of,
    real,
    several,
    shown,
)

SETTINGS: dict[str, Kind] = {
    "seed": integer(0, 2**32 - 1),
    "data.source": TEXT,
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
    "sample.per_cell": integer(1, MAX_PER_CELL),
    "evaluate.num_samples": integer(2),
    "evaluate.batch_size": COUNT,
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
SETTINGS |= options.kinds()
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
