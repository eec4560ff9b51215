"""Child processes, to which this process forwards its signals."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from types import FrameType
from typing import Any

from cfgjax.base.exits import PREEMPTED, install
from cfgjax.jobs.launch import gate
from cfgjax.jobs.launch.guardian import Guardian

PIPE = subprocess.PIPE


class Received:
    """Context that stores the stop signals in a list instead of handling them.

    The first SIGINT is stored as SIGTERM: a Python process that is still starting prints a traceback for SIGINT.
    """

    def __init__(self) -> None:
        self.numbers: list[signal.Signals] = []
        self._interrupted = False

    def __enter__(self) -> "Received":
        self._before = install(self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first = number == signal.SIGINT and not self._interrupted
        self._interrupted |= first
        self.numbers.append(signal.SIGTERM if first else signal.Signals(number))

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take(self) -> signal.Signals | None:
        """Removes and returns the oldest signal, or returns None."""
        return self.numbers.pop(0) if self.numbers else None


def start(argv: Sequence[str], guardian: Guardian, **options: Any) -> subprocess.Popen[bytes]:
    """Starts a process in its own session, which the guardian ends if this process is killed.

    In its own session the process receives Ctrl-C only once: from this process, not also from the terminal. The program
    starts only after it is registered with the guardian: otherwise it would outlive this process if that were killed
    in between.
    """
    argv = [sys.executable, "-I", "-S", gate.__file__, *argv]
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(argv, stdin=reading, start_new_session=True, **options)
        guardian.began(process.pid)
        os.write(writing, b"\n")
    finally:
        os.close(reading)
        os.close(writing)
    return process


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a process of `start` and all processes that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def exit_code(returncode: int, passed_on: Collection[int] = ()) -> int:
    """Returns a Popen's returncode as a shell does: 128 + n for signal n, but 75 for a signal in `passed_on`.

    A process that such a signal killed had not started its work, or it would have saved. It can be started again.
    """
    if -returncode in passed_on:
        return PREEMPTED
    return 128 - returncode if returncode < 0 else returncode
