"""Experiment configs: reading, overriding, comparing, and handing each section to the callable it belongs to.

`ConfigDict` stops here and in the training loop: what lies below takes plain keyword arguments.
"""

import inspect
import json

import ml_collections
from absl import flags
from ml_collections import config_flags

from cfgjax.base.errors import HelpAsked, UsageError, nearest, one_line, printable
from cfgjax.base.numerals import check_ascii, real_number
from cfgjax.base.paths import check_path
from cfgjax.base.python_files import call_function, guarded, load_module
from cfgjax.runs.overrides import key_of, split_overrides
from cfgjax.runs.settings import check_settings

CLASSIFIER_SECTIONS: tuple = (
    "seed",
    "data",
    "model",
    "optimizer",
    "ema",
    "train",
    "checkpoint",
    "evaluate",
    "mesh",
    "cluster",
)
NOISY_CLASSIFIER_SECTIONS: tuple = (*CLASSIFIER_SECTIONS, "diffusion")
SECTIONS = (*CLASSIFIER_SECTIONS, "diffusion", "sample")

# What may differ when a run resumes: its length, cadences, the placement of arrays, timeouts, and equivalent ways to
# compute the same.
RESUMABLE: tuple = ("train.num_steps", "train.log_every_steps", "data.num_workers", "data.worker_timeout_seconds")
RESUMABLE += ("checkpoint.", "sample.", "evaluate.", "mesh.", "cluster.", "model.remat", "model.fused_attention")

HELP = {"--help", "-h"}  # flags of every command


class ConfigParser(flags.ArgumentParser):
    """Parser of --config=FILE. Loads a config file once and locks its config.

    loaded: {path: config}. Passed by keyword because absl shares parsers whose positional arguments are equal.
    """

    def __init__(self, *, loaded):
        self._loaded = loaded

    def parse(self, argument):
        """Returns the ConfigDict of a config file."""
        if argument not in self._loaded:
            self._loaded[argument] = load_file(argument)
        return self._loaded[argument]


def define_flag(flag_values, argv):
    """Adds `--config=FILE` and `--config.key=value` overrides to flag_values, to be parsed from argv."""
    what = "Experiment file; override a value with --config.key=value."
    try:
        config_flags.DEFINE_config_file("config", None, what, flag_values=flag_values, sys_argv=argv)
    except flags.Error as e:  # for a --flagfile that cannot be read
        raise UsageError(one_line(e)) from e
    flag_values["config"].parser = ConfigParser(loaded={})


def parse_flags(flag_values, argv):
    """Parses argv into flag_values and returns the words that are not flags.

    The last override of a key takes effect. --config.key=None sets None for a value of any type. Numbers must have
    ASCII digits and be finite, config values aside, which `check_settings` checks. Raises HelpAsked for --help, and
    UsageError of one line for everything else; for an unknown flag or config key it names the nearest known one.
    """
    if HELP & set(argv):
        raise HelpAsked(flag_help(flag_values))
    argv, nones, path = [underscored(arg) for arg in argv], {}, None
    if "config" in flag_values:
        path = config_path(argv)
        check_path("--config", path)
        config = None if path is None else flag_values["config"].parser.parse(path)
        check_overrides(config, argv)
        argv, nones = split_overrides(argv, config)
    try:
        rest = flag_values(argv)
    except flags.Error as e:
        raise UsageError(printable(one_line(e))) from e
    check_numbers(flag_values, argv)
    if nones:
        try:
            flag_values.config.update_from_flattened_dict(nones)
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            raise UsageError(f"--config.{next(iter(nones))}=None: {one_line(e)}") from e
    if path is not None:
        check_settings(flag_values.config)
    return rest


def check_numbers(flag_values, argv):
    """Raises UsageError if a numeric flag has digits of another script or, except for config values, is not finite."""
    for arg, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = arg.lstrip("-").partition("=")
        if not arg.startswith("-") or name not in flag_values:
            continue
        parser, text = flag_values[name].parser, value if equals else following
        if not isinstance(parser, flags.IntegerParser | flags.FloatParser):
            continue
        check = real_number if isinstance(parser, flags.FloatParser) and name[:7] != "config." else check_ascii
        try:
            check(text)
        except ValueError as e:
            raise UsageError(f"--{name}={text}: {e}") from None


def flag_help(flag_values):
    """What absl says of the flags, without its own and without the names of modules between them."""
    own = flag_values.get_help().partition("\nabsl.flags:")[0]
    return "\n".join(line for line in own.splitlines() if line.startswith(" "))


def underscored(arg):
    """--make-reference=X as --make_reference=X; values as they are."""
    name, equals, value = arg.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else arg


def check_overrides(config, argv):
    """Raises UsageError if argv overrides a key that config lacks. config: None without --config."""
    keys = [key for key in map(key_of, argv) if key not in (None, "config")]
    if keys and config is None:
        raise UsageError(f"--config.{keys[0]} overrides a value of --config=FILE, which must be given too")
    known = flatten(config) if keys else {}
    sections = {name.partition(".")[0] for name in known}
    for key in keys:
        if key in known:
            continue
        if key in sections:
            inner = next(name for name in known if name.startswith(f"{key}."))
            raise UsageError(f"--config.{key} is a section; override its keys, such as --config.{inner}=…")
        raise UsageError(f"unknown config key {key!r}{nearest(key, known)}")


def config_path(argv):
    """The FILE of the last --config=FILE or --config FILE in argv, or None."""
    path = None
    for arg, following in zip(argv, [*argv[1:], None], strict=True):
        if arg.startswith("--config="):
            path = arg.removeprefix("--config=")
        if arg == "--config":
            path = following
    return path


def load_file(path):
    """The locked ConfigDict of a config file's get_config(). Raises UsageError for a file that fails in any way."""
    what = "config file"
    config = call_function(load_module(path, what), "get_config", what)
    if not isinstance(config, ml_collections.ConfigDict):
        raise UsageError(f"{what} {path}: get_config() returns a {type(config).__name__}, not a ConfigDict")
    guarded(lambda: to_json(config), path, what, doing="its config: ")
    if isinstance(config, ml_collections.FrozenConfigDict):
        config = ml_collections.ConfigDict(config)
    config.lock()
    return config


def flatten(config):
    """{"train.batch_size": 64, …} of a nested config."""
    flat: dict = {}
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            flat |= {f"{key}.{inner}": v for inner, v in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def check_sections(config, sections=SECTIONS):
    """Raises UsageError unless config has exactly these sections."""
    for name in config:
        if name not in sections:
            raise UsageError(f"unknown config section {name!r}{nearest(name, sections)}")
    if missing := [name for name in sections if name not in config]:
        raise UsageError(f"config lacks the sections {', '.join(missing)}")


def call(function, section, given, **fixed):
    """Returns function(**given, **fixed); given: a config section. Raises UsageError for unknown or missing keys."""
    parameters = inspect.signature(function).parameters
    known = [name for name in parameters if name not in fixed]
    for key in given:
        if key not in known:
            raise UsageError(f"unknown config key '{section}.{key}'{nearest(key, known)}")
    required = [name for name in known if parameters[name].default is inspect.Parameter.empty]
    if missing := [name for name in required if name not in given]:
        raise UsageError(f"config.{section} lacks {', '.join(missing)}")
    return function(**given, **fixed)


def to_json(config):
    """The config as JSON text, keys sorted."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text):
    """The ConfigDict of `to_json`'s text, with lists as tuples."""
    return from_dict(json.loads(text))


def from_dict(value):
    """The ConfigDict of a dict read from JSON, with lists as tuples."""

    def tuples(value):
        if isinstance(value, dict):
            return {key: tuples(v) for key, v in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    return ml_collections.ConfigDict(tuples(value))


def check_resumable(saved, given):
    """Raises UsageError naming the keys in which a run's saved config and the given one differ, beyond RESUMABLE."""
    saved, given = flatten(saved), flatten(from_json(to_json(given)))
    differing = [
        f"{key} is {given.get(key, 'absent')!r}, the run has {saved.get(key, 'absent')!r}"
        for key in sorted(saved.keys() | given.keys())
        if saved.get(key, "absent") != given.get(key, "absent") and not key.startswith(RESUMABLE)
    ]
    if differing:
        raise UsageError(f"the workdir holds a run of another config: {'; '.join(differing)}")
