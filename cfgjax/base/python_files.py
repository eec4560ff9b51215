"""Loads the user's config and sweep files, which are Python. Every failure in them becomes a one-line error.

A file may import other files in its folder, as in `from .base import denoiser`, from any working folder.
"""

import contextlib
import importlib.machinery
import importlib.util
import inspect
import itertools
import os
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from cfgjax.base.errors import UsageError, nearest, one_line, printable

T = TypeVar("T")

MAX_CHARACTERS = 300  # of an error's own text
FILE_NUMBERS = itertools.count()  # of loaded files


def load_module(path: str | os.PathLike[str], what: str) -> types.ModuleType:
    """Returns the module of a Python file. what: "config file" or "sweep file", for the errors.

    Raises UsageError if the file is missing, is not Python, or raises anything except KeyboardInterrupt.
    """
    path = str(path)
    if not path:
        raise UsageError(f"the path of the {what} is empty")
    if os.path.isdir(path):
        raise UsageError(f"{what} {path} is a folder; need a .py file")
    if not os.path.isfile(path):  # False for names that are too long; Path raises for them
        raise UsageError(f"there is no {what} {path}")
    if not path.endswith(".py"):
        raise UsageError(f"{what} {path}: the ending must be .py")
    module = module_beside(path)

    def run() -> None:
        exec(compile(Path(path).read_bytes(), path, "exec", dont_inherit=True), module.__dict__)

    guarded(run, path, what)
    return module


def module_beside(path: str) -> types.ModuleType:
    """Returns an empty module for the file at path, in a new package whose path is the file's folder.

    Every load has its own package, so that imported files are read again and not confused with other modules.
    """
    package = types.ModuleType(f"cfgjax_files_{next(FILE_NUMBERS)}")
    package.__path__ = [os.path.dirname(os.path.abspath(path))]
    name = f"{package.__name__}.{Path(path).stem.replace('.', '_')}"
    module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(name, loader=None, origin=path))
    module.__file__ = path
    sys.modules |= {package.__name__: package, name: module}  # dataclasses look up types there
    importlib.invalidate_caches()  # a file in the folder may be new
    return module


def split_argument(text: str | os.PathLike[str]) -> tuple[str, str | None]:
    """Returns (FILE, ARGUMENT) of FILE:ARGUMENT, whose FILE ends in .py; (text, None) of a path without an argument."""
    path, mark, argument = str(text).rpartition(".py:")
    if not mark or os.path.exists(text):  # an existing path may contain the mark
        return str(text), None
    return f"{path}.py", argument


def arguments_of(module: types.ModuleType, what: str) -> tuple[str, ...]:
    """Returns the arguments that a file takes, as it lists them in ARGUMENTS, as strings; () without a list."""
    return guarded(lambda: tuple(map(str, getattr(module, "ARGUMENTS", ()))), str(module.__file__), what, "ARGUMENTS: ")


def check_argument(module: types.ModuleType, name: str, argument: str | None, what: str) -> tuple[str, ...]:
    """Returns the arguments of a module's function: () or (argument,). Raises UsageError if it takes others."""
    path, known, function = str(module.__file__), arguments_of(module, what), getattr(module, name, None)
    if not callable(function):
        return ()  # `call_function` reports it
    parameters = list(guarded(lambda: inspect.signature(function), path, what).parameters.values())
    if argument is not None and not parameters:
        raise UsageError(f"{what} {path} takes no argument, {argument!r} is given; use {path}")
    if not argument and parameters and (argument is not None or parameters[0].default is inspect.Parameter.empty):
        which = f"one of {', '.join(known)}" if known else f"the argument of its {name}"
        raise UsageError(f"{what} {path} needs an argument, {path}:ARGUMENT with {which}")
    if argument is not None and known and argument not in known:
        raise UsageError(f"{what} {path}: unknown argument {argument!r}{nearest(argument, known)}")
    return () if argument is None else (argument,)


def call_function(module: types.ModuleType, name: str, what: str, *arguments: object) -> Any:
    """Calls a function of a module from `load_module` and returns its value. Raises UsageError if it fails."""
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"{what} {module.__file__} has no {name}()")
    return guarded(lambda: function(*arguments), str(module.__file__), what, doing=f"{name}(): ")


def guarded(function: Callable[[], T], path: str | os.PathLike[str], what: str, doing: str = "") -> T:
    """Returns function(). Turns any exception except KeyboardInterrupt into a UsageError with the line in the file."""
    try:
        with no_bytecode():
            return function()
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # SystemExit too
        where = "".join(f"{name}, line {line}: " for name, line in lines_of(e, path))
        raise UsageError(f"{what} {where or f'{path}: '}{doing}{cause(e)}") from e


@contextlib.contextmanager
def no_bytecode() -> Iterator[None]:
    """Context in which imports write no __pycache__ next to the user's files."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def lines_of(error: BaseException, path: str | os.PathLike[str]) -> list[tuple[str, int]]:
    """Returns [(file, line)] of an error: innermost in the file at path, then in another file of its folder."""
    folder = os.path.dirname(os.path.abspath(path))
    found: list[tuple[str | None, int]] = []
    trace = error.__traceback__
    while trace is not None:
        found.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.lineno is not None:
        found.append((error.filename, error.lineno))
    own = [(name, line) for name, line in found if name and same_file(name, path)][-1:]
    beside = [
        (name, line) for name, line in found if name and os.path.dirname(name) == folder and not same_file(name, path)
    ]
    return own + [(os.path.basename(name), line) for name, line in beside[-1:]]


def same_file(name: str | os.PathLike[str], path: str | os.PathLike[str]) -> bool:
    """Returns whether two paths name the same file."""
    return os.path.abspath(name) == os.path.abspath(path)


def cause(error: BaseException) -> str:
    """Returns an error's type and text on one line."""
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({'' if error.code is None else repr(error.code)})"
    name = type(error).__name__
    try:
        text = error.msg or "" if isinstance(error, SyntaxError) else re.sub(r"cfgjax_files_\d+", "", str(error))
    except BaseException:  # raised by the error's own __str__, SystemExit included
        text = ""
    return f"{name}: {printable(one_line(text, MAX_CHARACTERS))}" if text.strip() else name
