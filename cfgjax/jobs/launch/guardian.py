"""A small process that ends the children of its parent if the parent is killed.

It reads lines from standard input: `+123` for a new child, which leads a process group, and `-123` when that child has
ended. If the input ends without `done`, the parent was killed: the remaining children get SIGTERM, so that they save,
and their process groups get SIGKILL after the grace period. It imports only the standard library, to start quickly.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable


class Guardian:
    """The parent's handle of a guardian, a context manager. On exit the children are no longer guarded."""

    def __init__(self, grace_seconds: float) -> None:
        argv = [sys.executable, "-I", "-S", __file__, str(grace_seconds)]
        null = subprocess.DEVNULL
        reading, self._pipe = os.pipe()
        self._process = subprocess.Popen(argv, stdin=reading, stdout=null, stderr=null, start_new_session=True)
        os.close(reading)

    def began(self, pid: int) -> None:
        """Registers a child that has started."""
        self._say(f"+{pid}")

    def ended(self, pid: int) -> None:
        """Unregisters a child that has ended; its pid may be reused."""
        self._say(f"-{pid}")

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):  # a run continues without its guardian
            os.write(self._pipe, f"{line}\n".encode())

    def __enter__(self) -> "Guardian":
        return self

    def __exit__(self, *error: object) -> None:
        self._say("done")
        os.close(self._pipe)
        self._process.wait()


def main(grace_seconds: float) -> None:
    """Tracks the parent's children until the parent has ended, then ends the remaining ones."""
    children: set[int] = set()
    for line in sys.stdin:
        if line == "done\n":
            return
        change = children.add if line[0] == "+" else children.discard
        change(int(line[1:]))
    deadline = time.monotonic() + grace_seconds
    send(os.kill, children, signal.SIGTERM)  # not to the groups: children stop their own workers
    while time.monotonic() < deadline and send(os.killpg, children, 0):
        time.sleep(0.05)
    send(os.killpg, children, signal.SIGKILL)


def send(function: Callable[[int, int], None], children: Iterable[int], number: int) -> bool:
    """Sends a signal with os.kill or os.killpg. Returns whether any process received it."""
    received = False
    for child in children:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            function(child, number)
            received = True
    return received


if __name__ == "__main__":
    main(float(sys.argv[1]))
