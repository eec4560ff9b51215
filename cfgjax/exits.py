"""How a process ends: what asks it to, the exit codes of the commands, and an end that nothing can hold up."""

import contextlib
import os
import signal
import sys

DONE, FAILED, BAD_USAGE, PREEMPTED = 0, 1, 2, 75
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # the last is what schedulers may be told to send


def end_process(told, code):
    """Ends the process at once, with the text as its last line on stderr.

    Exit handlers and libraries' threads may hang where another process is gone, or fail once more at a full disk; what
    they say then is dropped.
    """
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    stderr = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.write(stderr, f"{told}\n".encode())
    os._exit(code)
