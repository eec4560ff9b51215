"""SIGTERM and SIGINT as a wish to stop, looked at between steps."""

import signal


class StopRequest:
    """A context in which SIGTERM and SIGINT set `.signal`, a name, and nothing else.

    The same signal a second time does what it did before, so that an impatient Ctrl-C still ends the process.
    """

    def __init__(self):
        self.signal = None

    def __enter__(self):
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        self.signal = signal.Signals(number).name
        signal.signal(number, self._before[number])
