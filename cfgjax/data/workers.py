"""The preparation for worker processes, and the first steps of each of them."""

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess

from cfgjax.base.exits import STOP_SIGNALS

WARNINGS = "PYTHONWARNINGS"
STOPPED = "stopped"
STATES = {"T": STOPPED, "t": STOPPED, "D": "waiting for a disk or network", "R": "running", "S": "idle"}  # of Linux


def before_workers() -> None:
    """Starts Python's tracker of semaphores and shared memory, without its warnings about leaked resources.

    A process that exits immediately after a failure, with the failure as its last line, leaves them to the tracker.
    """
    given = os.environ.get(WARNINGS)
    os.environ[WARNINGS] = ",".join(filter(None, [given, "ignore:resource_tracker:UserWarning"]))
    resource_tracker.ensure_running()
    if given is None:
        del os.environ[WARNINGS]
    else:
        os.environ[WARNINGS] = given


def enter_worker() -> None:
    """Makes this process end with its parent, ignore stop signals, and use no device."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # terminals and launchers send them to all processes; the parent decides
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    if "jax" in sys.modules:  # grain imports it; the setting has an effect until something is computed
        sys.modules["jax"].config.update("jax_platforms", "cpu")


def state_of(pid: int | None) -> str:
    """Returns the state of a process, a value of STATES, or "alive" if the system does not say."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return STATES.get(file.read().rpartition(")")[2].split()[0], "alive")
    except OSError:
        return "alive"


def _end_with(parent: BaseProcess) -> None:
    """Waits until the parent has exited or was killed, and ends this process."""
    parent.join()
    os._exit(1)
