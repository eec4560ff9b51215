"""SIGTERM, SIGINT and SIGUSR1 as a wish to stop, looked at between steps."""

import signal

import numpy as np

from cfgjax.base.exits import STOP_SIGNALS


class StopRequest:
    """A context in which these signals set `.signal`, a name, and nothing else.

    SIGINT a second time does what it did before, so that an impatient Ctrl-C still ends the process; schedulers may
    send the others more than once.
    """

    def __init__(self):
        self.signal = None

    def __enter__(self):
        self._before = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        self.signal = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])


def wish_number(name):
    """The signal's number as an array of one, 0 for None: what a step carries to the other processes."""
    return np.array([0 if name is None else signal.Signals[name].value], np.int32)


def wish_name(number):
    """The inverse of `wish_number`, of the number itself."""
    return signal.Signals(int(number)).name if number else None
