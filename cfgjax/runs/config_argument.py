"""Arguments of config files: --config=FILE:ARGUMENT hands ARGUMENT to the file's get_config."""

import inspect
import os
from pathlib import Path
from types import ModuleType

from cfgjax.base.errors import UsageError, nearest
from cfgjax.base.python_files import guarded, load_module

WHAT = "config file"


def split_argument(text: str | Path) -> tuple[str, str | None]:
    """Returns (FILE, ARGUMENT) of FILE:ARGUMENT, whose FILE ends in .py; (text, None) of a path without an argument."""
    path, mark, argument = str(text).rpartition(".py:")
    if not mark or os.path.exists(text):  # an existing path may contain the mark
        return str(text), None
    return f"{path}.py", argument


def check_argument(module: ModuleType, argument: str | None) -> tuple[str, ...]:
    """Returns the arguments of a config file's get_config: () or (argument,). Raises UsageError if it takes others.

    ARGUMENTS, if the file has it, lists those that it takes.
    """
    path, known = str(module.__file__), getattr(module, "ARGUMENTS", None)
    function = getattr(module, "get_config", None)
    if not callable(function):
        return ()  # `call_function` reports it
    parameters = list(guarded(lambda: inspect.signature(function), path, WHAT).parameters.values())
    if argument is not None and not parameters:
        raise UsageError(f"{WHAT} {path} takes no argument, {argument!r} is given; use --config={path}")
    if not argument and parameters and (argument is not None or parameters[0].default is inspect.Parameter.empty):
        which = f"one of {', '.join(map(str, known))}" if known else "the argument of its get_config"
        raise UsageError(f"{WHAT} {path} needs an argument, --config={path}:ARGUMENT with {which}")
    if argument is not None and known and argument not in map(str, known):
        raise UsageError(f"{WHAT} {path}: unknown argument {argument!r}{nearest(argument, known)}")
    return () if argument is None else (argument,)


def variants(path: str | Path) -> list[str]:
    """Returns [FILE], or [FILE:ARGUMENT, …] for a config file with ARGUMENTS."""
    known = getattr(load_module(path, WHAT), "ARGUMENTS", ())
    return [f"{path}:{argument}" for argument in known] or [str(path)]
