"""A small process that executes another program once its parent has registered it with the guardian.

It waits for a byte on standard input, then executes the program in its arguments with an empty standard input. If the
input ends without a byte, the parent was killed and nothing is executed. It imports only the standard library, to start
quickly.
"""

import os
import signal
import sys


def main(argv: list[str]) -> None:
    """Executes argv if the parent sends a byte."""
    if not os.read(0, 1):
        return
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # the program would inherit Python's ignored SIGPIPE
    try:
        os.execvp(argv[0], argv)
    except OSError as e:
        sys.exit(f"cfgjax: failed: {argv[0]} cannot be started: {e.strerror}")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # end without a traceback
    main(sys.argv[1:])
