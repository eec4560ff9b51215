"""Experiment configs: reading, overriding, comparing, and handing each section to the callable it belongs to.

`ConfigDict` stops here and in the training loop: what lies below takes plain keyword arguments.
"""

import inspect
import json
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from cfgjax.errors import HelpAsked, UsageError, nearest
from cfgjax.overrides import key_of, split_overrides
from cfgjax.paths import check_path

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

# What may differ between a run and its resumption: run length, cadence, where the arrays lie, who is waited for, and in
# what way the same is computed.
RESUMABLE: tuple = ("train.num_steps", "train.log_every_steps", "data.num_workers", "data.worker_timeout_seconds")
RESUMABLE += ("checkpoint.", "sample.", "evaluate.", "mesh.", "cluster.", "model.remat", "model.fused_attention")

PATHS = ("data.path", "data.data_dir", "train.init_from", "evaluate.classifier", "evaluate.reference")
HELP = {"--help", "-h"}  # flags of every command


def define_flag(flag_values, argv):
    """Adds `--config=FILE` and `--config.key=value` overrides to flag_values, to be parsed from argv."""
    what = "Experiment file; override a value with --config.key=value."
    config_flags.DEFINE_config_file("config", None, what, flag_values=flag_values, sys_argv=argv)


def parse_flags(flag_values, argv):
    """flag_values(argv), with every failure as one line: unknown flags and config keys name the nearest one.

    Of overrides of one key the last counts. --config.key=None sets None whatever the type of the value.
    Raises HelpAsked for --help.
    """
    if HELP & set(argv):
        raise HelpAsked(flag_help(flag_values))
    path = config_path(argv)
    check_path("--config", path)
    if path is not None and not Path(path).is_file():
        raise UsageError(f"there is no config file {path}")
    argv, nones = split_overrides(list(map(underscored, argv)), check_overrides(path, argv))
    try:
        rest = flag_values(argv)
    except flags.Error as e:
        raise UsageError(" ".join(str(e).split())) from e
    if nones:
        flag_values.config.update_from_flattened_dict(nones)
    if path is not None:
        check_paths(flag_values.config)
    return rest


def flag_help(flag_values):
    """What absl says of the flags, without its own and without the names of modules between them."""
    own = flag_values.get_help().partition("\nabsl.flags:")[0]
    return "\n".join(line for line in own.splitlines() if line.startswith(" "))


def underscored(arg):
    """--make-reference=X as --make_reference=X; values as they are."""
    name, equals, value = arg.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else arg


def check_overrides(path, argv):
    """The ConfigDict of the file at path where a key of it is overridden, otherwise None.

    Raises UsageError for a --config.key that it does not have, or without a file.
    """
    keys = [key for key in map(key_of, argv) if key not in (None, "config")]
    if keys and path is None:
        raise UsageError(f"--config.{keys[0]} overrides a value of --config=FILE, which must be given too")
    config = load_file(path) if keys else None
    known = flatten(config) if keys else {}
    sections = {name.partition(".")[0] for name in known}
    for key in keys:
        if key not in known and key not in sections:
            raise UsageError(f"unknown config key {key!r}{nearest(key, known)}")
    return config


def check_paths(config):
    """Raises UsageError where one of PATHS in a config cannot be a path."""
    flat = flatten(config)
    for key in PATHS:
        if isinstance(flat.get(key), str):
            check_path(f"config.{key}", flat[key])


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
    """The ConfigDict of an experiment file's get_config()."""
    flag_values, argv = flags.FlagValues(), ["cfgjax", f"--config={path}"]
    define_flag(flag_values, argv)
    try:
        flag_values(argv)
    except (flags.Error, AttributeError, KeyError, SyntaxError, NameError, ImportError) as e:
        raise UsageError(f"config file {path}: {type(e).__name__}: {' '.join(str(e).split())}") from e
    if not isinstance(flag_values.config, ml_collections.ConfigDict):
        raise UsageError(f"config file {path}: get_config() returns a {type(flag_values.config).__name__}")
    return flag_values.config


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
    check_paths(config)


def call(function, section, given, **fixed):
    """function(**given, **fixed), for the keys of a config section, with those unknown or missing told by name."""
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

    def tuples(value):
        if isinstance(value, dict):
            return {key: tuples(v) for key, v in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    return ml_collections.ConfigDict(tuples(json.loads(text)))


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
