"""If a flag is given twice, the later value takes effect, for flags of every type."""

import itertools
import re

import pytest
from absl import flags
from tiny import EXPERIMENTS

from cfgjax.base.errors import UsageError
from cfgjax.cli import evaluate, sample
from cfgjax.runs.config import define_flag, parse_flags
from cfgjax.runs.settings import KIND_OF_KEY

CONFIG = f"--config={EXPERIMENTS / 'digits.py'}"
VALUES = {  # key: [(words of a command line, value)]
    "model.multipliers": [("(1,)", (1,)), ("(1, 2)", (1, 2)), ("2", (2,)), ("None", None)],
    "sample.labels": [("(0, 1)", (0, 1)), ("()", ()), ("None", None)],
    "train.batch_size": [("8", 8), ("16", 16), ("None", None)],
    "diffusion.p_uncond": [("0.25", 0.25), ("0.5", 0.5), ("None", None)],
    "data.random_flip": [("True", True), ("False", False), ("None", None)],
    "model.name": [("a", "a"), ("None", None), ("b=None", "b=None")],
    "train.init_from": [("a", "a"), ("b", "b"), ("None", None)],
}
PAIRS = [(key, *pair) for key, values in VALUES.items() for pair in itertools.permutations(values, 2)]


def parse(*words):
    """The config of a command line."""
    given, argv = flags.FlagValues(), ["cfgjax train", *words]
    define_flag(given, argv)
    assert parse_flags(given, argv) == ["cfgjax train"]
    return given.config


def value(config, key):
    for part in key.split("."):
        config = config[part]
    return config


@pytest.mark.parametrize(("key", "first", "second"), PAIRS)
def test_the_later_of_two_overrides_of_a_key_takes_effect(key, first, second):
    words = [f"--config.{key}={text}" for text, _ in (first, second)]
    if KIND_OF_KEY[key].admits(second[1]):
        assert value(parse(CONFIG, *words), key) == second[1]
    else:
        with pytest.raises(UsageError, match=re.escape(f"{key} is {second[1]!r}; need")):
            parse(CONFIG, *words)


@pytest.mark.parametrize(
    ("words", "key", "last"),
    [
        (["--config.model.multipliers", "(1,)", "--config.model.multipliers=(1,2)"], "model.multipliers", (1, 2)),
        (["--config.model.multipliers=(1,2)", "--config.model.multipliers", "(1,)"], "model.multipliers", (1,)),
        (["-config.model.multipliers=(1,2)", "--config.model.multipliers=(1,)"], "model.multipliers", (1,)),
        (["--config.optimizer.clip_norm", "8", "--config.optimizer.clip_norm", "None"], "optimizer.clip_norm", None),
        (["--config.train.batch_size=None", "--config.train.batch_size", "8"], "train.batch_size", 8),
        (["--config.data.random_flip", "--config.train.batch_size=8"], "data.random_flip", True),
        (["--config.data.random_flip", "--noconfig.data.random_flip"], "data.random_flip", False),
        (["--noconfig.data.random_flip", "--config.data.random_flip"], "data.random_flip", True),
        (["--config.data.random_flip=None", "--config.data.random_flip"], "data.random_flip", True),
    ],
)
def test_every_way_to_write_an_override_is_accepted(words, key, last):
    assert value(parse(CONFIG, *words), key) == last


def test_overrides_of_other_keys_are_not_changed():
    config = parse(CONFIG, "--config.seed=3", "--config.model.multipliers=(1,)", "--config.model.multipliers=(2,)")
    assert config.seed == 3


def test_the_later_of_two_config_files_takes_effect():
    config = parse(f"--config={EXPERIMENTS / 'mixture.py'}", CONFIG, "--config.seed=3")
    assert config.data.source == "digits" and config.seed == 3


def test_an_unknown_key_is_an_error_in_every_position():
    for words in (["--config.seed=1", "--config.sed=1"], ["--config.sed=1", "--config.seed=1"], ["-config.sed=1"]):
        with pytest.raises(UsageError, match="unknown config key 'sed', did you mean 'seed'"):
            parse(CONFIG, *words)


@pytest.mark.parametrize(
    ("define", "name"),
    [
        (sample.define_flags, "labels"),
        (sample.define_flags, "guidance"),
        (sample.define_flags, "mesh"),
        (evaluate.define_flags, "seed"),
        (evaluate.define_flags, "num_steps"),
        (evaluate.define_flags, "classifier_scale"),
    ],
)
def test_the_later_of_two_lists_for_a_flag_takes_effect(define, name):
    argv = ["cfgjax", f"--{name}=1,2", f"--{name}=3"]
    given = define(argv)
    parse_flags(given, argv)
    assert given[name].value in (["3"], "3")
