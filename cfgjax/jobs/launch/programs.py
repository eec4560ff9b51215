"""Calls the command-line programs of schedulers and clouds."""

import shutil
import subprocess
from collections.abc import Sequence

from cfgjax.base.errors import UsageError


def require(program: str) -> None:
    """Raises UsageError unless a program is installed."""
    if shutil.which(program) is None:
        raise UsageError(f"there is no {program} on this machine; --dry_run prints its input")


def check_interpreter(python: str) -> None:
    """Raises UsageError unless --python is a program on this machine."""
    if shutil.which(python) is None:
        raise UsageError(f"--python={python}: there is no such program on this machine; need a Python interpreter")


def output_of(argv: Sequence[str], text: str | None = None, *, shown: bool = False) -> str:
    """Runs a program with text as its standard input and returns its stripped output. shown: print the output instead.

    Raises UsageError if the program is not installed or cannot be started, and ChildProcessError with its last line if
    it fails.
    """
    require(argv[0])
    try:
        done = subprocess.run(argv, input=text, text=True, capture_output=not shown, encoding="utf-8", errors="replace")
    except OSError as e:
        raise UsageError(f"{argv[0]} cannot be started: {e.strerror}") from e
    if done.returncode:
        lines = (done.stderr or "").strip().splitlines()
        raise ChildProcessError(f"{argv[0]} ended with {done.returncode}{': ' + lines[-1] if lines else ''}")
    return (done.stdout or "").strip()
