"""Python files of users, which hold configs and sweeps: every failure in them is one line."""

import os
import sys
import types
from pathlib import Path

from cfgjax.errors import UsageError, printable

MAX_CHARACTERS = 300  # of an error's own text


def load_module(path, what):
    """Returns the module of a Python file. what: "config file" or "sweep file", for the errors.

    Raises UsageError for a file that is missing, not Python, or raises anything but KeyboardInterrupt, SystemExit
    included.
    """
    path = str(path)
    if not path:
        raise UsageError(f"the path of the {what} is empty")
    if os.path.isdir(path):
        raise UsageError(f"{what} {path} is a folder; need a .py file")
    if not os.path.isfile(path):  # False for names that are too long, for which Path raises
        raise UsageError(f"there is no {what} {path}")
    if not path.endswith(".py"):
        raise UsageError(f"{what} {path}: the ending must be .py")
    module = types.ModuleType(f"cfgjax_{Path(path).stem}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # where dataclasses look their types up

    def run():
        exec(compile(Path(path).read_bytes(), path, "exec", dont_inherit=True), module.__dict__)

    guarded(run, path, what)
    return module


def call_function(module, name, what):
    """Returns the value of a function of `load_module`'s module. Raises UsageError as it does."""
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"{what} {module.__file__} has no {name}()")
    return guarded(function, module.__file__, what, doing=f"{name}(): ")


def guarded(function, path, what, doing=""):
    """Returns function(). Raises UsageError with the line of the file at path for all but KeyboardInterrupt."""
    try:
        return function()
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # SystemExit, too
        line = line_of(e, path)
        where = f"{what} {path}" + ("" if line is None else f", line {line}")
        raise UsageError(f"{where}: {doing}{cause(e)}") from e


def line_of(error, path):
    """Returns the number of the innermost line of the file at path that an error came through, or None."""
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
    try:
        text = printable(" ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split()))
    except BaseException:  # whose text cannot be made: __str__ may raise anything, SystemExit included
        text = ""
    if len(text) > MAX_CHARACTERS:
        text = f"{text[:MAX_CHARACTERS]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
