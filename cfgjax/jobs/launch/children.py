"""Processes that this one starts and passes its signals on to."""

import contextlib
import os
import signal
import subprocess
import sys

from cfgjax.base.exits import PREEMPTED, STOP_SIGNALS
from cfgjax.jobs.launch import gate

PIPE = subprocess.PIPE


class Received:
    """A context in which the signals STOP_SIGNALS are put into a list, to be taken from it, and do nothing else.

    The first SIGINT is taken as SIGTERM: a Python that is still starting answers SIGINT with a traceback.
    """

    def __init__(self):
        self.numbers = []
        self._interrupted = False

    def __enter__(self):
        self._before = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        return self

    def _handle(self, number, frame):
        first = number == signal.SIGINT and not self._interrupted
        self._interrupted |= first
        self.numbers.append(signal.SIGTERM if first else signal.Signals(number))

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take(self):
        """The oldest of the signals, or None."""
        return self.numbers.pop(0) if self.numbers else None


def start(argv, guardian, **options):
    """Starts a process in its own session, which the guardian ends if this process is killed.

    In another session, Ctrl-C reaches it only once: from this process, not from the terminal as well. The program
    begins after the guardian knows of it: otherwise it would go on if this process were killed in between.
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


def kill(process):
    """Ends what is left of a process of `start` and of what it started itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def exit_code(returncode, passed_on=()):
    """A Popen's returncode as shells give it, 128 + n for signal n; 75 where that was passed on to it.

    A process that is ended so has not begun, or else it would have saved: started again, it goes on.
    """
    if -returncode in passed_on:
        return PREEMPTED
    return 128 - returncode if returncode < 0 else returncode
