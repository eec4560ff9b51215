"""Exit codes of the commands, handlers of stop signals, and an immediate end of the process."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

DONE, FAILED, BAD_USAGE, PREEMPTED = 0, 1, 2, 75
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)  # SIGHUP: a terminal
# was closed; schedulers can be set to send SIGUSR1 or SIGUSR2
STUCK_SECONDS = 5

SignalHandler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


class StopSignal(KeyboardInterrupt):
    """A stop signal reached a command that has no handler of its own. Its text is the signal's name."""


def install(handler: SignalHandler) -> dict[signal.Signals, SignalHandler]:
    """Installs a handler of the stop signals. Returns {signal: handler before}.

    SIGHUP remains ignored where it is, as in a command that nohup started.
    """
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return {n: signal.signal(n, handler) for n in STOP_SIGNALS if n != signal.SIGHUP or not ignored}


def stop_at_once() -> None:
    """Installs handlers that end the process with PREEMPTED at once. For use before there is anything to save."""
    install(lambda number, frame: end_stopped(number))


def stop_by_exception() -> None:
    """Installs handlers that raise `StopSignal`, so that temporary files are removed.

    Code outside Python, such as a compilation, can delay the handler; the process ends after STUCK_SECONDS at the
    latest. Commands that save when they are stopped install their own handlers.
    """
    install(handle_stop)
    sys.unraisablehook = raise_again
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=end_when_stuck, args=(reading,), name="stop signals", daemon=True).start()


def handle_stop(number: int, frame: FrameType | None) -> NoReturn:
    """Handler of `stop_by_exception`. Ends the process at once while it imports modules."""
    ignore_stops()
    if is_importing(frame):  # an exception might be swallowed or become an ImportError
        end_stopped(number)
    raise StopSignal(signal.Signals(number).name)


def ignore_stops() -> None:
    """Ignores stop signals: only a second Ctrl-C may interrupt what a command does before it ends.

    Without this, a repeated signal would end the process while Python shuts down, with another exit code.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGINT else signal.SIG_IGN)


def leave(code: int) -> NoReturn:
    """Ends the command with an exit code, which later stop signals do not change."""
    ignore_stops()
    sys.exit(code)


def raise_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Hook for exceptions that Python drops: sends the signal of a dropped `StopSignal` again.

    Python drops exceptions raised in `__del__` and in callbacks of weak references and the garbage collector. It also
    reports here a signal that arrived just before it was ignored.
    """
    if isinstance(unraisable.exc_value, OSError) and "ignored due to race condition" in str(unraisable.exc_value):
        return
    if not isinstance(unraisable.exc_value, StopSignal):
        sys.__unraisablehook__(unraisable)
        return
    number = signal.Signals[str(unraisable.exc_value)]
    signal.signal(number, handle_stop)
    again = threading.Timer(0.01, os.kill, (os.getpid(), number))
    again.daemon = True
    with contextlib.suppress(RuntimeError):  # no thread can start while the interpreter shuts down
        again.start()


def is_importing(frame: FrameType | None) -> bool:
    """Returns whether the frame or one of its callers belongs to the import system."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def end_when_stuck(reading: int) -> NoReturn:
    """Ends the process if the handler `handle_stop` has not run within STUCK_SECONDS of a stop signal."""
    while True:
        for number in os.read(reading, 64):
            if number in STOP_SIGNALS and signal.getsignal(number) is handle_stop:
                time.sleep(STUCK_SECONDS)
                if signal.getsignal(number) is handle_stop:
                    end_stopped(number)


def end_stopped(number: int) -> NoReturn:
    """Ends the process because of a signal."""
    end_process(stopped_line(signal.Signals(number).name), PREEMPTED)


def stopped_line(name: str) -> str:
    """Returns the last line of a command that a signal stopped before there was anything to save."""
    return f"cfgjax: {name}: stopped; no file is half-written; run the same command to start again"


def end_process(line: str, code: int) -> NoReturn:
    """Ends the process at once, with `line` as its last line on stderr.

    Exit handlers and library threads are skipped: they may hang if another process is gone, or fail again on a full
    disk.
    """
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # RuntimeError: a signal arrived during a flush
        sys.stdout.flush()
    stderr = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with contextlib.suppress(OSError):
        os.write(stderr, f"{line}\n".encode(errors="backslashreplace"))
    os._exit(code)
