"""A small process that ends the children of its starter if the starter is killed.

It reads lines from standard input: `+123` for a new child, which leads a process group, `-123` when that child has
ended. If the input ends without `done`, the starter was killed: the remaining children get SIGTERM, so that they save,
and their process groups SIGKILL after the grace period. It imports only the standard library, to start quickly.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time


class Guardian:
    """The starter's handle of a guardian, a context. After its end the children are no longer guarded."""

    def __init__(self, grace_seconds):
        argv = [sys.executable, "-I", "-S", __file__, str(grace_seconds)]
        null = subprocess.DEVNULL
        reading, self._pipe = os.pipe()
        self._process = subprocess.Popen(argv, stdin=reading, stdout=null, stderr=null, start_new_session=True)
        os.close(reading)

    def began(self, pid):
        """Registers a child that has started."""
        self._say(f"+{pid}")

    def ended(self, pid):
        """Removes a child that has ended; its number may be reused."""
        self._say(f"-{pid}")

    def _say(self, line):
        with contextlib.suppress(OSError):  # a run continues without its guardian
            os.write(self._pipe, f"{line}\n".encode())

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._say("done")
        os.close(self._pipe)
        self._process.wait()


def main(grace_seconds):
    """Tracks the starter's children until the starter has ended, then ends the remaining ones."""
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


def send(function, children, number):
    """Sends a signal by os.kill or os.killpg. Returns whether any process received it."""
    received = False
    for child in children:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            function(child, number)
            received = True
    return received


if __name__ == "__main__":
    main(float(sys.argv[1]))
