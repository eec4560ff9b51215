"""Hooks and writers that the caller of `train` adds, and what happens if one of them fails."""

import contextlib
import traceback
from collections.abc import Iterator
from typing import Any

from cfgjax.base.errors import UsageError, one_line
from cfgjax.training.interrupt import StopAsked


class ExtensionError(RuntimeError):
    """Raised if a hook or a writer of the caller raises an error, which is its cause."""


def name_of(extension: Any) -> str:
    """Returns the name of a hook or writer in messages: its attribute `name`, or that of its class or function."""
    return str(getattr(extension, "name", None) or getattr(extension, "__name__", type(extension).__name__))


def check_hooks(hooks: Any) -> tuple:
    """Returns the hooks as a tuple. Raises UsageError unless each is callable with an every_steps of at least 1."""
    hooks = tuple(hooks)
    for hook in hooks:
        every = getattr(hook, "every_steps", None)
        if not callable(hook):
            raise UsageError(f"hook {name_of(hook)} cannot be called; need hook(state, step, workdir, log)")
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise UsageError(f"hook {name_of(hook)} has every_steps {every!r}; need an integer of at least 1")
    return hooks


def check_writers(writers: Any) -> tuple:
    """Returns the writers as a tuple. Raises UsageError unless each has a method write(step, metrics)."""
    writers = tuple(writers)
    for writer in writers:
        if not callable(getattr(writer, "write", None)):
            raise UsageError(f"writer {name_of(writer)} has no method write(step, metrics)")
    return writers


@contextlib.contextmanager
def naming(kind: str, extension: Any, step: int) -> Iterator[None]:
    """Context that converts any error of an extension to an ExtensionError with its name, the step and the line."""
    try:
        yield
    except StopAsked:
        raise
    except Exception as e:
        frame = traceback.extract_tb(e.__traceback__)[-1]
        what = f"{type(e).__name__}: {one_line(e)} ({frame.filename}, line {frame.lineno})"
        raise ExtensionError(f"{kind} {name_of(extension)} failed at step {step}: {what}") from e
