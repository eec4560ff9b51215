"""How a process ends: the exit codes of the commands, the signals that stop them, and an end that nothing can delay."""

import contextlib
import os
import signal
import sys
import threading
import time

DONE, FAILED, BAD_USAGE, PREEMPTED = 0, 1, 2, 75
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # the last is what schedulers may be told to send
STUCK_SECONDS = 5


class StopSignal(KeyboardInterrupt):
    """A stop signal reached a command that has no handler of its own. Its text is the signal's name."""


def stop_at_once():
    """From here on a stop signal ends the process with PREEMPTED: for its start, when there is nothing to clean up."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, frame: end_stopped(number))


def stop_by_exception():
    """From here on a stop signal raises `StopSignal`, so that temporary files are removed.

    Code outside Python, such as a compilation, may keep the handler from running; after STUCK_SECONDS the process is
    ended all the same. Commands that save when they are stopped install handlers of their own.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, stop)
    sys.unraisablehook = raise_again
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=end_when_stuck, args=(reading,), name="stop signals", daemon=True).start()


def stop(number, frame):
    """The handler of `stop_by_exception`; ends the process at once where it is importing modules."""
    for other in STOP_SIGNALS:  # a second signal does not interrupt the removal of temporary files; a second Ctrl-C may
        signal.signal(other, signal.SIG_DFL if other == signal.SIGINT else signal.SIG_IGN)
    if is_importing(frame):  # where an exception may be swallowed, or become an ImportError
        end_stopped(number)
    raise StopSignal(signal.Signals(number).name)


def raise_again(unraisable):
    """The hook for exceptions that Python drops: sends a dropped `StopSignal` once more.

    Python drops what is raised in `__del__`, or in callbacks of weak references and of the garbage collector.
    """
    if not isinstance(unraisable.exc_value, StopSignal):
        sys.__unraisablehook__(unraisable)
        return
    number = signal.Signals[str(unraisable.exc_value)]
    signal.signal(number, stop)
    again = threading.Timer(0.01, os.kill, (os.getpid(), number))
    again.daemon = True
    with contextlib.suppress(RuntimeError):  # no thread starts while the interpreter ends
        again.start()


def is_importing(frame):
    """Whether the frame, or one that called it, is the import system's."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def end_when_stuck(reading):
    """Ends the process where a stop signal came and its handler, `stop`, has not run STUCK_SECONDS later."""
    while True:
        for number in os.read(reading, 64):
            if number in STOP_SIGNALS and signal.getsignal(number) is stop:
                time.sleep(STUCK_SECONDS)
                if signal.getsignal(number) is stop:
                    end_stopped(number)


def end_stopped(number):
    """Ends the process because of a signal."""
    end_process(stopped_line(signal.Signals(number).name), PREEMPTED)


def stopped_line(name):
    """The last line of a command that a signal of this name stopped before it had anything to save."""
    return f"cfgjax: {name}: stopped; no file is half-written, the same command starts again"


def end_process(told, code):
    """Ends the process at once, with the text as its last line on stderr.

    Exit handlers and libraries' threads may hang where another process is gone, or fail once more at a full disk; what
    they print then is dropped.
    """
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # RuntimeError: a signal came while it was flushed
        sys.stdout.flush()
    stderr = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with contextlib.suppress(OSError):
        os.write(stderr, f"{told}\n".encode(errors="backslashreplace"))
    os._exit(code)
