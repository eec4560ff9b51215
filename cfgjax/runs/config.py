"""Experiment configs: reading, overriding, comparing, and calling functions with a section as keyword arguments."""

import dataclasses
import inspect
import json
import sys
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import ml_collections
from absl import flags
from ml_collections import ConfigDict, config_flags

from cfgjax.base.errors import HelpAsked, UsageError, nearest, one_line, printable
from cfgjax.base.experiments import experiments_folder, file_of
from cfgjax.base.numerals import check_ascii, real_number
from cfgjax.base.paths import check_path
from cfgjax.base.python_files import (
    arguments_of,
    call_function,
    check_argument,
    guarded,
    load_module,
    split_argument,
)
from cfgjax.base.storage import Place
from cfgjax.runs.config_reference import HELP_WIDTH, key_like
from cfgjax.runs.overrides import key_of, split_overrides
from cfgjax.runs.sections import fields_of
from cfgjax.runs.settings import SECTIONS, Settings, check_kinds

T = TypeVar("T")
OWN_OF_ABSL, QUOTE = ("flagfile", "undefok"), "'"

WHAT = "config file"
HELP = {"--help", "-h"}  # flags of every command


class ConfigParser(flags.ArgumentParser):
    """Parser of --config=FILE. Loads each config file once and locks its config.

    loaded: {path: config}, a keyword argument because absl shares parsers whose positional arguments are equal.
    """

    def __init__(self, *, loaded: dict[str, ConfigDict]) -> None:
        self._loaded = loaded

    def parse(self, argument: str) -> ConfigDict:
        """Returns the ConfigDict of a config file."""
        if argument not in self._loaded:
            self._loaded[argument] = load_file(argument)
        return self._loaded[argument]


def define_flag(flag_values: flags.FlagValues, argv: list[str]) -> None:
    """Adds --config, its overrides --config.key=value and --print_config to flag_values, to be parsed from argv."""
    what = "Experiment: a name such as digits, or a file, FILE or FILE:ARGUMENT; --config.KEY=VALUE overrides a value."
    try:
        config_flags.DEFINE_config_file("config", None, what, flag_values=flag_values, sys_argv=argv)
    except flags.Error as e:  # a --flagfile that cannot be read
        raise UsageError(one_line(e)) from e
    flag_values["config"].parser = ConfigParser(loaded={})
    what = "Only print the config with its overrides, in the format of the run's config.json."
    flags.DEFINE_bool("print_config", False, what, flag_values=flag_values)


def parse_flags(flag_values: flags.FlagValues, argv: list[str]) -> list[str]:
    """Parses argv into flag_values and returns the words that are not flags.

    The last override of a key takes effect. --config.key=None sets None for a value of any type. Numbers must be finite
    and have ASCII digits; `check_kinds` checks those of the config. Raises HelpAsked for --help, and UsageError for
    everything else, with the nearest known name for an unknown flag or config key.
    """
    if HELP & set(argv):
        raise HelpAsked(flag_help(flag_values), flag_values)
    argv, path = [underscored(arg) for arg in argv], None
    nones: dict[str, None] = {}
    if "config" in flag_values:
        path = config_path(argv)
        check_path("--config", path)
        config = None if path is None else flag_values["config"].parser.parse(path)
        check_overrides(config, argv)
        argv, nones = split_overrides(argv, config)
    try:
        rest = flag_values(argv)
    except flags.UnrecognizedFlagError as e:
        key = key_like(e.flagname) if "config" in flag_values else None
        raise UsageError(f"{printable(one_line(e))}{f', did you mean --config.{key}?' if key else ''}") from e
    except flags.Error as e:
        raise UsageError(printable(one_line(e))) from e
    check_numbers(flag_values, argv)
    if nones:
        try:
            flag_values.config.update_from_flattened_dict(nones)
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            raise UsageError(f"--config.{next(iter(nones))}=None: {one_line(e)}") from e
    if path is not None:
        check_kinds(flag_values.config)
    return rest


def check_numbers(flag_values: flags.FlagValues, argv: list[str]) -> None:
    """Raises UsageError if a numeric flag has non-ASCII digits or, unless it overrides the config, is not finite."""
    for arg, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = arg.lstrip("-").partition("=")
        if not arg.startswith("-") or name not in flag_values:
            continue
        parser, text = flag_values[name].parser, value if equals else following
        if not isinstance(parser, flags.IntegerParser | flags.FloatParser):
            continue
        check: Callable[[str], object] = check_ascii
        if isinstance(parser, flags.FloatParser) and not name.startswith("config."):
            check = real_number
        try:
            check(text)
        except ValueError as e:
            raise UsageError(f"--{name}={text}: {e}") from None


def flag_help(flag_values: flags.FlagValues) -> str:
    """Returns a paragraph for each flag in the order of their definition, without absl's own."""
    paragraphs = []
    for name in flag_values:
        flag = flag_values[name]
        if name in OWN_OF_ABSL or name.startswith("config.") or not flag.help:
            continue
        choices = getattr(flag.parser, "enum_values", None)
        head = f"--[no]{name}" if flag.boolean else f"--{name}" + (f"={'|'.join(choices)}" if choices else "")
        known = not flag.boolean and flag.default not in (None, [], sys.executable)
        default = f" Default: {str(flag.default_as_str).strip(QUOTE)}." if known else ""
        default = " On by default." if flag.boolean and flag.default else default
        text = f"{head}: {' '.join(flag.help.split()).rpartition('>: ')[2]}{default}"
        paragraphs += textwrap.wrap(text, HELP_WIDTH, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(paragraphs)


def underscored(arg: str) -> str:
    """Returns --make-reference=X as --make_reference=X; values are unchanged."""
    name, equals, value = arg.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else arg


def check_overrides(config: ConfigDict | None, argv: list[str]) -> None:
    """Raises UsageError if argv overrides a key that config lacks. config: None without --config."""
    keys = [key for key in map(key_of, argv) if key not in (None, "config")]
    if keys and config is None:
        raise UsageError(f"--config.{keys[0]} overrides a value of a config file; add --config=FILE")
    known = flatten(config) if keys else {}
    sections = {name.partition(".")[0] for name in known}
    for key in keys:
        if key in known:
            continue
        if key in sections:
            inner = next(name for name in known if name.startswith(f"{key}."))
            raise UsageError(f"--config.{key} is a section; override its keys, such as --config.{inner}=…")
        raise UsageError(f"unknown config key {key!r}{nearest(key, known)}")


def config_path(argv: list[str]) -> str | None:
    """Returns FILE of the last --config=FILE or --config FILE in argv, or None."""
    path = None
    for arg, following in zip(argv, [*argv[1:], None], strict=True):
        if arg.startswith("--config="):
            path = arg.removeprefix("--config=")
        if arg == "--config":
            path = following
    return path


def load_file(text: str | Place) -> ConfigDict:
    """Returns the locked ConfigDict of a config file, FILE or FILE:ARGUMENT, from get_config() or get_config(ARGUMENT).

    The name of an installed experiment, such as "digits", is as good as its path. Raises UsageError for a file that
    fails in any way, and for an argument that it does not take.
    """
    path, argument = split_argument(file_of(text, WHAT, experiments_folder()))
    module = load_module(path, WHAT)
    config = call_function(module, "get_config", WHAT, *check_argument(module, "get_config", argument, WHAT))
    if not isinstance(config, ConfigDict):
        raise UsageError(f"{WHAT} {path}: get_config() returns a {type(config).__name__}, not a ConfigDict")
    guarded(lambda: to_json(config), path, WHAT, doing="its config: ")
    if isinstance(config, ml_collections.FrozenConfigDict):
        config = ConfigDict(config)
    config.lock()
    return config


def variants(path: str | Place) -> list[str]:
    """Returns [FILE], or [FILE:ARGUMENT, …] for a config file with ARGUMENTS."""
    return [f"{path}:{argument}" for argument in arguments_of(load_module(path, WHAT), WHAT)] or [str(path)]


def load_config(path: str | Place, **overrides: Any) -> ConfigDict:
    """Returns the locked ConfigDict of an experiment with overrides, such as `**{"train.num_steps": 9}`.

    path: the name of an installed experiment, or a config file, FILE or FILE:ARGUMENT. Raises UsageError for a file
    that cannot be loaded, and for an unknown key or an invalid value.
    """
    config = load_file(path)
    known = flatten(config)
    for key, value in overrides.items():
        if key not in known:
            raise UsageError(f"unknown config key {key!r}{nearest(key, known)}")
        with config.ignore_type():  # `check_kinds` says it better
            config.update_from_flattened_dict({key: value})
    check_kinds(config)
    return config


def flatten(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Returns {"train.batch_size": 64, …} of a nested config."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            flat |= {f"{key}.{inner}": v for inner, v in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def call(function: Callable[..., T], section: str, given: Mapping[str, Any], **fixed: Any) -> T:
    """Returns function(**given, **fixed). given: keys of a section. Raises UsageError for unknown or missing keys."""
    parameters = inspect.signature(function).parameters
    known = [name for name in parameters if name not in fixed]
    for key in given:
        if key not in known:
            raise UsageError(f"unknown config key '{section}.{key}'{nearest(key, known)}")
    required = [name for name in known if parameters[name].default is inspect.Parameter.empty]
    if missing := [name for name in required if name not in given]:
        raise UsageError(f"config.{section} lacks {', '.join(missing)}")
    return function(**given, **fixed)


def to_json(config: ConfigDict | Settings) -> str:
    """Returns the config as JSON text with sorted keys."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> dict[str, Any]:
    """Returns the values of a config from text written by `to_json`, with lists as tuples."""
    return tuples(json.loads(text))


def tuples(value: Any) -> Any:
    """Returns a value read from JSON with tuples in place of lists."""
    if isinstance(value, dict):
        return {key: tuples(v) for key, v in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def default_of(key: str) -> Any:
    """Returns the default of a key in its section's dataclass, or "absent" if it has none."""
    section, _, name = key.partition(".")
    field = fields_of(SECTIONS[section]).get(name) if section in SECTIONS else None
    return "absent" if field is None or field.default is dataclasses.MISSING else field.default
