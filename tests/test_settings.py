"""Every key of every config, with every wrong value: one line that names the key, before anything else."""

import math

import ml_collections
import pytest
import tiny
from absl import flags

from cfgjax.base.errors import UsageError
from cfgjax.runs.config import define_flag, flatten, load_file, parse_flags
from cfgjax.runs.settings import SETTINGS, check_settings

CONFIGS = {name: load_file(text) for name, text in tiny.CONFIGS.items()}
KEYS = sorted({key for config in CONFIGS.values() for key in flatten(config)})
WRONG = {
    "None": None,
    "NaN": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "beyond every float": 10**400,
    "10**30": 10**30,
    "huge": 1e300,
    "negative": -5,
    "a half": 0.5,
    "True": True,
    "zero": 0,
    "a word": "wrong",
    "empty": "",
    "blank": " ",
    "NUL": "a\0b",
    "bytes": b"wrong",
    "empty tuple": (),
    "tuple of None": (None,),
    "tuple of NaN": (math.nan,),
    "tuple of infinity": (1, math.inf),
    "tuple of tuples": ((1,),),
    "tuple of words": ("wrong",),
    "tuple of bools": (True,),
    "negative tuple": (-1, -2),
    "dict": {"a": 1},
    "object": object(),
}
OPTIONAL = [
    "data.low_res_size",
    "data.crop",
    "data.data_dir",
    "model.num_heads",
    "model.head_channels",
    "diffusion.low_res_logsnr_min",
    "train.init_from",
    "optimizer.decay_steps",
    "optimizer.clip_norm",
    "checkpoint.keep_every_steps",
    "sample.v",
    "evaluate.classifier",
    "evaluate.reference",
    "evaluate.every_steps",
    "diffusion.schedule",
    "diffusion.logsnr_min",
    "diffusion.logsnr_max",
    "diffusion.betas",
    "diffusion.num_timesteps",
]
WORDS = [
    "data.source",
    "data.split",
    "data.path",
    "data.crop",
    "data.class_order",
    "data.data_dir",
    "data.tfds_split",
    "model.name",
    "model.remat",
    "model.pool",
    "diffusion.schedule",
    "diffusion.betas",
    "diffusion.time_sampler",
    "diffusion.parametrisation",
    "diffusion.weighting",
    "optimizer.name",
    "optimizer.schedule",
    "train.init_from",
    "sample.sampler",
    "sample.num_steps",
    "evaluate.label_policy",
    "evaluate.classifier",
    "evaluate.reference",
]
FLOATS = [
    "optimizer.learning_rate",
    "optimizer.eps",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "diffusion.bound_weight",
    "diffusion.logsnr_min",
    "diffusion.logsnr_max",
    "diffusion.low_res_logsnr_min",
]
MAY_BE = {  # (name of a value): keys for which it is a value of the right kind
    "None": OPTIONAL,
    "a word": WORDS,  # the registries know which words there are
    "True": [key for key, kind in SETTINGS.items() if kind.admits(False)],
    "negative": ["diffusion.logsnr_min", "diffusion.logsnr_max", "diffusion.low_res_logsnr_min"],
    "a half": [
        "optimizer.learning_rate",
        "optimizer.b1",
        "optimizer.b2",
        "optimizer.eps",
        "optimizer.weight_decay",
        "optimizer.clip_norm",
        "diffusion.p_uncond",
        "diffusion.bound_weight",
        "diffusion.logsnr_min",
        "diffusion.logsnr_max",
        "diffusion.low_res_logsnr_min",
        "model.dropout",
        "sample.v",
        "sample.eta",
        "data.random_crop",
    ],
    "zero": [
        "seed",
        "data.seed",
        "data.num_workers",
        "model.dropout",
        "optimizer.learning_rate",
        "optimizer.b1",
        "optimizer.b2",
        "optimizer.weight_decay",
        "optimizer.warmup_steps",
        "diffusion.p_uncond",
        "diffusion.bound_weight",
        "diffusion.logsnr_min",
        "diffusion.logsnr_max",
        "diffusion.low_res_logsnr_min",
        "sample.v",
        "sample.eta",
    ],
    "empty tuple": ["model.attention_resolutions", "ema.rates"],
    "negative tuple": ["sample.guidance", "evaluate.guidance", "evaluate.every_guidance"],
    "tuple of tuples": ["data.means"],
    "10**30": FLOATS,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_experiments_pass_and_every_key_of_theirs_is_checked(name):
    check_settings(CONFIGS[name])
    assert set(flatten(CONFIGS[name])) <= SETTINGS.keys()


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("key", sorted(SETTINGS))
def test_a_wrong_value_is_one_line_that_names_its_key(key, wrong):
    section, _, name = key.rpartition(".")
    values = {name: WRONG[wrong]}
    config = ml_collections.ConfigDict({section: values} if section else values, convert_dict=False)
    if section and isinstance(config[section], dict):
        config = ml_collections.ConfigDict({section: ml_collections.ConfigDict(values, convert_dict=False)})
    if key in MAY_BE.get(wrong, ()):
        return check_settings(config)
    with pytest.raises(UsageError) as e:
        check_settings(config)
    assert str(e.value).startswith(f"{key} is ")
    assert "; need " in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("wrong", [None, 3, "wrong", (), (1,)])
@pytest.mark.parametrize("section", sorted({key.partition(".")[0] for key in KEYS if "." in key}))
def test_a_section_that_is_none_is_named(section, wrong):
    with pytest.raises(UsageError, match=rf"^{section} is .*need a section"):
        check_settings(ml_collections.ConfigDict({section: wrong}))


@pytest.mark.parametrize(
    "given",
    [
        "train.batch_size=None",
        "train=None",
        "ema.rates=None",
        "cluster.timeout_seconds=nan",
        "optimizer.warmup_steps=-5",
        "optimizer.learning_rate=inf",
        "model.channels=0",
        f"model.channels={2**31 - 1}",
        "evaluate.features=clip",
        "evaluate.guidance=(1e39,)",
        "optimizer.eps=1e-50",
        f"optimizer.b2={1 - 1e-9}",
        f"ema.rates=({1 - 1e-9},)",
        f"data.num_classes={2**31 - 1}",
        f"sample.per_cell={2**31 - 1}",
        "model.dropout=1.0",
        "model.dtype=float64",
        "diffusion.logsnr_max=inf",
        f"train.num_steps={10**30}",
        "data.image_shape=()",
        "sample.guidance=(nan,)",
    ],
)
def test_wrong_values_on_the_command_line(given):
    argv = ["cfgjax train", f"--config={tiny.CONFIGS['digits']}", f"--config.{given}"]
    flag_values = flags.FlagValues()
    define_flag(flag_values, argv)
    with pytest.raises(UsageError) as e:
        parse_flags(flag_values, argv)
    assert given.partition("=")[0] in str(e.value)
