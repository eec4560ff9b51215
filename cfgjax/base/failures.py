"""Errors of the machine or the input. They end a command with one line instead of a traceback."""

import sys
from typing import NamedTuple, overload

from cfgjax.base.errors import UsageError, one_line
from cfgjax.base.exits import BAD_USAGE, FAILED
from cfgjax.base.staging import with_urls

OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY", "out of memory", "Out of memory")
OF_DEVICES = ("Unable to initialize backend", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CUDA_ERROR", "DATA_LOSS")


class Failure(NamedTuple):
    """How a command failed: the reason, printed in its last line, and the exit code."""

    reason: str
    code: int

    @property
    def line(self) -> str:
        """The last line of the command."""
        return f"cfgjax: {'error' if self.code == BAD_USAGE else 'failed'}: {with_urls(self.reason)}"


@overload
def expected_failure(error: UsageError) -> Failure: ...
@overload
def expected_failure(error: BaseException) -> Failure | None: ...
def expected_failure(error: BaseException) -> Failure | None:
    """Returns the `Failure` for an error of the machine or the input, or None for a bug, which needs its traceback."""
    text = one_line(error)
    if isinstance(error, UsageError):
        return Failure(text, BAD_USAGE)
    if isinstance(error, UnicodeError):
        return Failure(f"text cannot be read or written in its encoding: {text}", BAD_USAGE)
    if isinstance(error, ValueError) and "embedded null" in text:
        return Failure("a path contains a NUL character, which no file name can have", BAD_USAGE)
    if isinstance(error, (OSError, ArithmeticError)):
        return Failure(text, FAILED)
    if isinstance(error, MemoryError):
        return Failure(f"out of memory: {text}", FAILED)
    if isinstance(error, RecursionError):
        return Failure(f"the input is nested too deeply: {text}", FAILED)
    if isinstance(error, RuntimeError) and "home directory" in text:
        return Failure(f"{text}; set HOME or XDG_CACHE_HOME", BAD_USAGE)
    if isinstance(error, RuntimeError) and is_of_jax(error):
        if any(word in text for word in OUT_OF_MEMORY):
            return Failure(f"the device is out of memory; try a smaller batch: {text}", FAILED)
        if any(word in text for word in OF_DEVICES):
            return Failure(text, FAILED)
    return None


def is_of_jax(error: BaseException) -> bool:
    """Returns whether an error comes from jax's devices rather than from other code."""
    jax = sys.modules.get("jax")
    return jax is not None and (isinstance(error, jax.errors.JaxRuntimeError) or "initialize backend" in str(error))
