"""What every worker process does first."""

import multiprocessing
import os
import signal
import sys
import threading


def enter_worker():
    """Makes this process one that ends with its parent, is left alone by signals meant for it, and takes no device."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # a terminal and a launcher send them to all: the parent decides
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    if "jax" in sys.modules:  # grain imports it; what is set here holds as long as nothing is computed
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def _end_with(parent):
    """Waits for the parent, also one that is killed, and ends this process."""
    parent.join()
    os._exit(1)
