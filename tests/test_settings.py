"""Every key of every section, with every wrong value: one line that names the key, before anything else."""

import dataclasses
import fractions
import math
import sys

import ml_collections
import numpy as np
import pytest
import tiny
from absl import flags

from cfgjax.base.errors import UsageError
from cfgjax.cli import main as cli
from cfgjax.data.sources.registry import SOURCES, open_source
from cfgjax.diffusion.schedules import MAX_STEPS
from cfgjax.evaluation.frontier.generate import LABELS_OF_POLICY
from cfgjax.models.network import make_network
from cfgjax.nets import NETS
from cfgjax.nets.mlp import MLP
from cfgjax.runs.config import define_flag, flatten, from_json, load_file, parse_flags, to_json
from cfgjax.runs.sample_options import LABEL_POLICIES
from cfgjax.runs.sections import OPTIONS, kinds_of
from cfgjax.runs.settings import KIND_OF_KEY, SECTIONS, Settings
from cfgjax.runs.values import MAX_LEVELS

CONFIGS = {name: load_file(text) for name, text in tiny.CONFIGS.items()}
BASE = tiny.EXPERIMENTS / "base.py"

WRONG = {
    "None": None,
    "NaN": math.nan,
    "NaN of numpy": np.float32("nan"),
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "infinite in float32": 1e39,
    "beyond every float": 10**400,
    "minus 10**400": -(10**400),
    "10**30": 10**30,
    "huge": 1e300,
    "2**63": 2**63,
    "negative": -5,
    "minus one": -1,
    "minus 0.1": -0.1,
    "zero": 0,
    "0.0": 0.0,
    "zero in float32": 1e-50,
    "a half": 0.5,
    "1.0": 1.0,
    "one in float32": 1 - 1e-9,
    "1.5": 1.5,
    "True": True,
    "False": False,
    "complex": 1j,
    "a word": "wrong",
    "a number as text": "3",
    "empty": "",
    "blank": " ",
    "NUL": "a\0b",
    "bytes": b"wrong",
    "empty tuple": (),
    "empty list": [],
    "tuple of None": (None,),
    "tuple of NaN": (math.nan,),
    "tuple of infinity": (1, math.inf),
    "tuple of tuples": ((1,),),
    "ragged tuples": ((1.0,), ()),
    "tuple of words": ("wrong",),
    "tuple of bools": (True,),
    "tuple of halves": (0.5, 0.5, 0.5),
    "negative tuple": (-1, -2),
    "set": {1},
    "dict": {"a": 1},
    "empty dict": {},
    "array": np.ones(3),
    "object": object(),
    "function": len,
}

LISTED_WORDS = "evaluate.rule evaluate.sampler evaluate.num_steps evaluate.grid"  # one or several
WORDS = {  # keys that are text; the registries know which words there are
    "data.source data.split data.path data.crop data.class_order data.data_dir data.tfds_split model.name model.remat",
    "model.pool diffusion.schedule diffusion.betas diffusion.time_sampler diffusion.parametrisation",
    "diffusion.weighting optimizer.name optimizer.schedule log.project",
    "train.init_from sample.rule sample.sampler sample.num_steps sample.grid evaluate.classifier evaluate.reference",
    LISTED_WORDS,
}
NULLABLE = {
    "data.low_res_size data.crop data.data_dir model.num_heads model.head_channels diffusion.low_res_logsnr_min",
    "train.init_from optimizer.decay_steps optimizer.clip_norm checkpoint.keep_every_steps ema.snapshot_every_steps",
    LISTED_WORDS,
    "evaluate.seed evaluate.ema evaluate.label_policy evaluate.clip",
    "evaluate.classifier evaluate.reference evaluate.every_steps diffusion.schedule diffusion.logsnr_min",
    "diffusion.logsnr_max diffusion.betas diffusion.num_timesteps",
}
SWITCHES = {
    "data.random_flip model.legacy_attention_order model.scale_shift model.resblock_resample model.learned_resample",
    "model.rescale model.conditional model.null_label model.low_res model.low_res_noise model.fused_attention",
    "diffusion.learned_variance ema.warmup",
}
REAL = {"diffusion.logsnr_min diffusion.logsnr_max diffusion.low_res_logsnr_min"}
AT_LEAST_0 = {"optimizer.learning_rate optimizer.weight_decay diffusion.bound_weight"}
ABOVE_0 = {"optimizer.eps optimizer.clip_norm"}
BELOW_1 = {"model.dropout optimizer.b1 optimizer.b2 evaluate.ema"}
SHARES = {"diffusion.p_uncond"}
FROM_0 = {"seed data.seed sample.seed evaluate.seed data.num_workers optimizer.warmup_steps"}
DURATIONS = {"data.worker_timeout_seconds cluster.start_timeout_seconds storage.retry_seconds"}
REAL_TUPLES = {"sample.guidance evaluate.guidance evaluate.every_guidance"}
MAY_BE_EMPTY = {"model.attention_resolutions ema.rates ema.widths log.writers"}

UNBOUNDED = REAL | AT_LEAST_0 | ABOVE_0
FRACTIONS = UNBOUNDED | BELOW_1 | SHARES | {"data.random_crop"}
ZEROS = REAL | AT_LEAST_0 | BELOW_1 | SHARES
ONES = UNBOUNDED | SHARES | DURATIONS | {"data.random_crop"}
HALVES = REAL_TUPLES | {"model.multipliers data.stds data.weights ema.rates evaluate.ema"}
ADMITTED = {  # name of a value: the keys for which it is of the right kind; for all others it is wrong
    "None": NULLABLE,
    "10**30": UNBOUNDED,
    "2**63": UNBOUNDED,
    "negative": REAL,
    "minus one": REAL | {"mesh.data mesh.fsdp"},
    "minus 0.1": REAL,
    "zero": ZEROS | FROM_0,
    "0.0": ZEROS,
    "zero in float32": ZEROS,
    "a half": FRACTIONS,
    "1.0": ONES,
    "one in float32": ONES,
    "1.5": UNBOUNDED | DURATIONS,
    "True": SWITCHES,
    "False": SWITCHES,
    "a word": WORDS,
    "a number as text": WORDS,
    "empty tuple": MAY_BE_EMPTY,
    "empty list": MAY_BE_EMPTY,
    "negative tuple": REAL_TUPLES,
    "tuple of halves": HALVES,
    "tuple of words": {LISTED_WORDS, "log.writers"},
    "tuple of tuples": {"data.means"},
}


def admitted(wrong):
    """The keys for which a value is of the right kind."""
    return {key for keys in ADMITTED.get(wrong, ()) for key in keys.split()}


def given(key, value):
    """A config of the experiments that has a key, with another value of it. Values are not converted."""
    section, _, name = key.rpartition(".")
    found = next((c for c in CONFIGS.values() if key in flatten(c)), CONFIGS["digits"]).to_dict()
    values = {name: dict(inner) if isinstance(inner, dict) else inner for name, inner in found.items()}
    (values[section] if section else values)[name] = value
    return values


def refusal(key, value):
    """What `Settings.from_config` says about a config with this value of a key, or None."""
    try:
        Settings.from_config(given(key, value))
    except UsageError as e:
        return str(e)
    return None


@pytest.mark.parametrize("key", sorted(KIND_OF_KEY))
def test_a_wrong_value_is_reported_on_one_line_with_its_key_and_valid_values(key):
    for wrong, value in WRONG.items():
        text = refusal(key, value)
        is_refused_for_its_kind = (
            text is not None and text.startswith(f"{key} is ") and text.endswith(KIND_OF_KEY[key].text)
        )
        assert is_refused_for_its_kind == (key not in admitted(wrong)), (wrong, text)
        assert text is None or len(text.splitlines()) == 1


def test_the_table_of_admitted_values_has_known_keys():
    assert {key for wrong in ADMITTED for key in admitted(wrong)} <= KIND_OF_KEY.keys()
    assert ADMITTED.keys() <= WRONG.keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_settings_of_an_experiment_have_its_values_and_their_types(name):
    config = CONFIGS[name]
    assert set(flatten(config)) <= KIND_OF_KEY.keys()
    settings = Settings.from_config(config)
    for key, value in flatten(config).items():
        section, _, key_name = key.rpartition(".")
        holder = getattr(settings, section) if section else settings
        options = getattr(holder, OPTIONS, {})
        assert (options[key_name] if key_name in options else getattr(holder, key_name)) == value, key
    assert Settings.from_config(settings) is settings
    assert Settings.from_config(from_json(to_json(config))) == settings
    assert to_json(settings) == to_json(config)


def test_every_key_occurs_once():
    for name, section in SECTIONS.items():
        own = {field.name for field in dataclasses.fields(section)}
        assert not own & getattr(section, "KINDS", {}).keys()
        assert {f"{name}.{key}" for key in kinds_of(section)} <= KIND_OF_KEY.keys()


def test_values_become_plain_python_values():
    settings = tiny.settings(
        given("train.batch_size", np.int64(8)) | {"ema": {"rates": [np.float64(0.5), 0]}, "seed": np.uint32(3)}
    )
    assert type(settings.train.batch_size) is int
    assert settings.ema.rates == (0.5, 0.0) and all(type(rate) is float for rate in settings.ema.rates)
    assert type(settings.seed) is int
    settings = tiny.settings(given("optimizer.learning_rate", fractions.Fraction(1, 4)))
    assert type(settings.optimizer.learning_rate) is float and settings.optimizer.learning_rate == 0.25


def test_settings_and_their_options_are_read_only():
    settings = tiny.settings(CONFIGS["digits"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.seed = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.train.batch_size = 1
    with pytest.raises(TypeError):
        settings.model.options["channels"] = 1
    settings.to_dict()["train"]["batch_size"] = 1
    assert settings.to_dict() == CONFIGS["digits"].to_dict()


def test_a_config_that_changes_later_does_not_change_the_settings():
    config = load_file(tiny.CONFIGS["digits"])
    settings = tiny.settings(config)
    config.train.batch_size = 7
    assert settings.train.batch_size == settings.given["train"]["batch_size"] == CONFIGS["digits"].train.batch_size


def test_replaced_values_are_checked_and_recorded_as_given():
    settings = tiny.settings(CONFIGS["digits"])
    other = settings.replace(**{"train.batch_size": 8, "seed": 5})
    assert (other.train.batch_size, other.given["train"]["batch_size"], other.seed) == (8, 8, 5)
    assert other.replace(**{"train.batch_size": settings.train.batch_size, "seed": settings.seed}) == settings
    with pytest.raises(UsageError, match=r"^train\.batch_size is 0; need"):
        settings.replace(**{"train.batch_size": 0})


@pytest.mark.parametrize("wrong", [None, 3, "wrong", (), (1,)])
@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_that_is_none_is_named(section, wrong):
    with pytest.raises(UsageError, match=rf"^{section} is .*need a section"):
        Settings.from_config(given("seed", 0) | {section: wrong})


@pytest.mark.parametrize("name", ["digits", "digits_classifier", "adm_classifier:64"])
def test_missing_sections_and_missing_or_unknown_keys_are_named(name):
    config = CONFIGS[name].to_dict()
    for section, values in config.items():
        with pytest.raises(UsageError, match=rf"lacks the sections .*{section}|unknown config section"):
            Settings.from_config({other: value for other, value in config.items() if other != section})
        if section == "seed":
            continue
        kind = SECTIONS[section]
        for field in dataclasses.fields(kind):
            needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if needed and field.name != "name":
                with pytest.raises(UsageError, match=rf"^config\.{section} lacks {field.name}$"):
                    Settings.from_config(config | {section: {k: v for k, v in values.items() if k != field.name}})
        if section not in ("data", "model"):
            with pytest.raises(UsageError, match="evry_steps"):
                Settings.from_config(config | {section: values | {"evry_steps": 1}})
    with pytest.raises(UsageError, match="unknown config section 'optimiser', did you mean 'optimizer'"):
        Settings.from_config(config | {"optimiser": {}})


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("diffusion.logsnr_min", 30.0, r"diffusion\.logsnr_min 30\.0 is not below diffusion\.logsnr_max 20\.0"),
        ("diffusion.betas", "linear", "needs .* or .*; .* given"),
        ("diffusion.logsnr_max", None, r"config\.diffusion lacks logsnr_max"),
        ("diffusion.schedule", "cosin", "unknown schedule 'cosin', did you mean 'cosine'"),
        ("diffusion.time_sampler", "unifrm", "unknown time sampler 'unifrm', did you mean 'uniform'"),
        ("data.low_res_size", 3, r"data\.low_res_size is 3; need a divisor of the height 8"),
        ("sample.sampler", "dim", "sample.sampler: unknown sampler 'dim', did you mean 'ddim'"),
        ("evaluate.label_policy", "balance", "evaluate.label_policy is 'balance'; need 'balanced' or 'random'"),
        ("evaluate.num_steps", 10**9, r"num_steps is 1000000000; need .* at most"),
    ],
)
def test_contradictory_values_are_a_one_line_error(key, value, text):
    section, _, name = key.partition(".")
    config = CONFIGS["digits"].to_dict()
    with pytest.raises(UsageError, match=text) as e:
        Settings.from_config(config | {section: config[section] | {name: value}})
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize(("key", "value"), [("random_flip", True), ("random_crop", 0.5), ("low_res_size", 1)])
def test_augmentation_and_small_images_are_for_images(key, value):
    with pytest.raises(UsageError, match=r"are for images; data\.image_shape \(2,\)"):
        tiny.settings(CONFIGS["mixture"]).replace(**{f"data.{key}": value})


def test_choices_in_settings_equal_those_of_the_registries():
    assert set(LABEL_POLICIES) == LABELS_OF_POLICY.keys()
    assert MAX_LEVELS == MAX_STEPS


def test_a_custom_network_and_source_have_their_own_config_keys(monkeypatch):
    class Wide(MLP):
        flavour: str = "plain"

    def dots(*, spacing, num_classes):
        label = np.arange(6, dtype=np.int32) % num_classes
        return np.float32(spacing * np.stack([label, -label], axis=1)), label

    monkeypatch.setitem(NETS, "wide", Wide)
    monkeypatch.setitem(SOURCES, "dots", dots)
    config = tiny.mixture_config().to_dict()
    config["data"] = {"source": "dots", "spacing": 0.25, "num_classes": 3, "image_shape": (2,)}
    config["model"] |= {"name": "wide", "flavour": "sweet"}
    settings = Settings.from_config(config)
    assert (settings.data.options, settings.model.options["flavour"]) == ({"spacing": 0.25}, "sweet")
    assert make_network(settings).flavour == "sweet"
    assert open_source(settings.data).image.max() == 0.5
    with pytest.raises(UsageError, match=r"unknown config key 'model\.flavor', did you mean 'flavour'"):
        make_network(settings.replace(**{"model.flavor": "sour"}))
    with pytest.raises(UsageError, match=r"unknown config key 'data\.spacin', did you mean 'spacing'"):
        open_source(settings.replace(**{"data.spacin": 1}).data)


def test_reading_settings_uses_no_device():
    from jax._src import xla_bridge

    before = dict(xla_bridge._backends)
    for config in CONFIGS.values():
        Settings.from_config(config)
    assert xla_bridge._backends == before
    assert "jax" in sys.modules


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
def test_wrong_values_on_the_command_line_are_reported(given):
    argv = ["cfgjax train", f"--config={tiny.CONFIGS['digits']}", f"--config.{given}"]
    flag_values = flags.FlagValues()
    define_flag(flag_values, argv)
    with pytest.raises(UsageError) as e:
        parse_flags(flag_values, argv)
    assert given.partition("=")[0] in str(e.value)


@pytest.mark.parametrize("command", ["train --workdir={path}/run", "preflight --devices=1"])
@pytest.mark.parametrize("given", ["optimizer.learning_rate=nan", "diffusion.logsnr_min=30.0", "sample.sampler=dim"])
def test_commands_refuse_wrong_values_and_write_nothing(command, given, tmp_path):
    words = [word.format(path=tmp_path) for word in command.split()]
    with pytest.raises(UsageError, match=given.partition("=")[0].rpartition(".")[2]) as e:
        cli.run_command([*words, f"--config={tiny.CONFIGS['digits']}", f"--config.{given}"])
    assert len(str(e.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_config_file_without_a_required_section_is_reported_on_one_line(tmp_path):
    path = tmp_path / "mine.py"
    config = CONFIGS["digits"].to_dict()
    del config["sample"]
    path.write_text(f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({config})\n")
    with pytest.raises(UsageError, match="^config lacks the sections sample$"):
        cli.run_command(["preflight", f"--config={path}", "--devices=1"])
    assert isinstance(load_file(path), ml_collections.ConfigDict)
