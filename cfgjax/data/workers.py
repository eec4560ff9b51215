"""What is done before worker processes start, and what each of them does first."""

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import resource_tracker

from cfgjax.base.exits import STOP_SIGNALS

WARNINGS = "PYTHONWARNINGS"
STOPPED = "stopped"
STATES = {"T": STOPPED, "t": STOPPED, "D": "waiting for a disk or network", "R": "at work", "S": "idle"}  # of Linux


def before_workers():
    """Starts Python's tracker of semaphores and shared memory, told not to warn of what is left for it to clean up.

    A process that ends at once, with its failure as the last line, leaves it all.
    """
    given = os.environ.get(WARNINGS)
    os.environ[WARNINGS] = ",".join(filter(None, [given, "ignore:resource_tracker:UserWarning"]))
    resource_tracker.ensure_running()
    if given is None:
        del os.environ[WARNINGS]
    else:
        os.environ[WARNINGS] = given


def enter_worker():
    """Makes this process one that ends with its parent, is left alone by signals meant for it, and takes no device."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # a terminal and a launcher send them to all: the parent decides
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    if "jax" in sys.modules:  # grain imports it; what is set here holds as long as nothing is computed
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def state_of(pid):
    """What a process is doing, one of STATES' words; "there" where the system does not say."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return STATES.get(file.read().rpartition(")")[2].split()[0], "there")
    except OSError:
        return "there"


def _end_with(parent):
    """Waits for the parent, also one that is killed, and ends this process."""
    parent.join()
    os._exit(1)
