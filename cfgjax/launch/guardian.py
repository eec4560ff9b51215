"""A process that outlives its starter only to end what the starter leaves running when it is killed.

It reads the starter's children from its standard input: `+123` for one that leads a process group, `-123` when that has
ended. When the input ends without `done`, the starter is gone: the children that are left get SIGTERM, so that they
save, and their whole groups SIGKILL after the grace. It imports the standard library alone, to start quickly.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time


class Guardian:
    """The guardian as its starter sees it: a context, which lets go of all children at its end."""

    def __init__(self, grace_seconds):
        argv = [sys.executable, "-I", "-S", __file__, str(grace_seconds)]
        null = subprocess.DEVNULL
        reading, self._pipe = os.pipe()
        self._process = subprocess.Popen(argv, stdin=reading, stdout=null, stderr=null, start_new_session=True)
        os.close(reading)

    def began(self):
        """Called in a child before it executes its program, so that it is known however early the starter dies."""
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # should the guardian be gone
        self._say(f"+{os.getpid()}")
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)

    def ended(self, pid):
        """The child has ended: its number may be given to another process."""
        self._say(f"-{pid}")

    def _say(self, line):
        with contextlib.suppress(OSError):  # a run goes on without its guardian
            os.write(self._pipe, f"{line}\n".encode())

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._say("done")
        os.close(self._pipe)
        self._process.wait()


def main(grace_seconds):
    """Reads which children there are until the starter has ended, then ends those that are left."""
    children: set[int] = set()
    for line in sys.stdin:
        if line == "done\n":
            return
        change = children.add if line[0] == "+" else children.discard
        change(int(line[1:]))
    deadline = time.monotonic() + grace_seconds
    send(os.kill, children, signal.SIGTERM)  # not to their workers, which they stop themselves
    while time.monotonic() < deadline and send(os.killpg, children, 0):
        time.sleep(0.05)
    send(os.killpg, children, signal.SIGKILL)


def send(function, children, number):
    """Sends a signal by os.kill or os.killpg. Returns whether there was any process to get it."""
    there = False
    for child in children:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            function(child, number)
            there = True
    return there


if __name__ == "__main__":
    main(float(sys.argv[1]))
