"""Loads config and sweep files, Python files of users. Every failure in them becomes an error of one line."""

import os
import sys
import types
from pathlib import Path

from cfgjax.base.errors import UsageError, one_line, printable

MAX_CHARACTERS = 300  # of an error's own text


def load_module(path, what):
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
    module = types.ModuleType(f"cfgjax_{Path(path).stem}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses look up types there

    def run():
        exec(compile(Path(path).read_bytes(), path, "exec", dont_inherit=True), module.__dict__)

    guarded(run, path, what)
    return module


def call_function(module, name, what):
    """Returns the value of a function of a module that `load_module` returned. Raises UsageError if it fails."""
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"{what} {module.__file__} has no {name}()")
    return guarded(function, module.__file__, what, doing=f"{name}(): ")


def guarded(function, path, what, doing=""):
    """Returns function(). Every exception except KeyboardInterrupt becomes a UsageError with the line in the file."""
    try:
        return function()
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # SystemExit too
        line = line_of(e, path)
        where = f"{what} {path}" + ("" if line is None else f", line {line}")
        raise UsageError(f"{where}: {doing}{cause(e)}") from e


def line_of(error, path):
    """Returns the number of the innermost line of the file at path in an error's traceback, or None."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return error.lineno
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def cause(error):
    """Returns an error's type and text on one line."""
    if isinstance(error, SystemExit):
        return f"it calls sys.exit({'' if error.code is None else repr(error.code)})"
    name = type(error).__name__
    try:
        text = error.msg if isinstance(error, SyntaxError) else str(error)
    except BaseException:  # raised by the error's own __str__, SystemExit included
        text = ""
    return f"{name}: {printable(one_line(text, MAX_CHARACTERS))}" if text.strip() else name
