"""Stop signals, such as SIGTERM, set a flag that training checks between steps."""

import signal
import threading
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from cfgjax.base.exits import install


@runtime_checkable
class StopFlag(Protocol):
    """What training checks between steps: `signal` is None, or the name of the stop signal that was received."""

    signal: str | None


class StopRequest:
    """A `StopFlag` and a context. Within it, stop signals only set `.signal` to their name.

    A second SIGINT has its previous effect, so that pressing Ctrl-C again ends the process. Schedulers may send the
    others more than once. Python delivers signals to the main thread only; in others, nothing sets `.signal`.
    """

    def __init__(self) -> None:
        self.signal: str | None = None

    def __enter__(self) -> "StopRequest":
        main = threading.current_thread() is threading.main_thread()
        self._before = install(self._handle) if main else {}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(number, self._before[signal.SIGINT])


class StopAsked(Exception):
    """A stop signal was received in a hook, which is called again when the run resumes. Its text is the signal."""


def signal_number(name: str | None) -> Int[np.ndarray, "1"]:
    """Returns the number of a signal, 0 for None, as an array that a step can carry to the other processes."""
    return np.array([0 if name is None else signal.Signals[name].value], np.int32)


def signal_name(number: Any) -> str | None:
    """Returns the name of the signal with this number, or None for 0."""
    return signal.Signals(int(number)).name if number else None
