"""A small process that becomes another program as soon as its starter has registered it with its guardian.

It waits for a byte on standard input, then executes the program that its arguments name, with an empty standard input.
If the input ends without a byte, the starter was killed before and nothing is executed. It imports only the standard
library, to start quickly.
"""

import os
import signal
import sys


def main(argv):
    """Executes argv if the starter says so."""
    if not os.read(0, 1):
        return
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, which the program would inherit
    try:
        os.execvp(argv[0], argv)
    except OSError as e:
        sys.exit(f"cfgjax: failed: {argv[0]} cannot be started: {e.strerror}")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a traceback
    main(sys.argv[1:])
