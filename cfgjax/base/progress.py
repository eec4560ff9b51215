"""Progress of a command: a line before long work begins, then a bar on a terminal and lines otherwise."""

import contextlib
import importlib.util
import logging
import sys
import time
import weakref
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import tqdm

from cfgjax.base.streams import TextFile

log = logging.getLogger("cfgjax.progress")  # silent in the Python API unless its level is INFO
# owner: programs compiled so far
_compiled: weakref.WeakKeyDictionary[object, set[Hashable]] = weakref.WeakKeyDictionary()
BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} ETA {remaining}{postfix}"
LINE_SECONDS = 30  # between progress lines without a terminal


def write_line(text: str, file: TextFile | None = None) -> None:
    """Writes a line above the progress bars to an open text file, by default sys.stdout.

    A line that cannot be written is dropped: nobody may read the output, or the disk may be full.
    """
    with contextlib.suppress(OSError):
        tqdm.tqdm.write(text, file=file)
        (file or sys.stdout).flush()


class LineHandler(logging.Handler):
    """Writes records as plain lines above the progress bars."""

    def __init__(self, file: TextFile) -> None:
        super().__init__()
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the record's message."""
        write_line(record.getMessage(), self._file)


def show_progress(file: TextFile | None) -> None:
    """Writes progress lines to an open text file; None turns them off."""
    log.handlers[:] = [] if file is None else [LineHandler(file)]
    log.setLevel(logging.WARNING if file is None else logging.INFO)
    log.propagate = False


def make_bar(**options: Any) -> tqdm.tqdm:
    """Returns a bar of tqdm: a widget in a notebook, text on a terminal, and disabled elsewhere.

    options: of tqdm, without file; disable=True in processes that show nothing.
    """
    options = {"disable": None, "dynamic_ncols": True, **options}
    if "ipykernel" not in sys.modules or importlib.util.find_spec("ipywidgets") is None:
        return tqdm.tqdm(file=sys.stderr, **options)

    from tqdm.notebook import tqdm_notebook

    return tqdm_notebook(**options | {"disable": bool(options["disable"])})


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Logs a line before the block and its duration afterwards."""
    log.info("%s …", what)
    start = time.monotonic()
    yield
    log.info("%s: done in %.1f s", what, time.monotonic() - start)


def compiling(owner: object, what: str, options: Mapping[str, Hashable]) -> contextlib.AbstractContextManager[None]:
    """Returns `timed` for the first call of a jitted function, which compiles it, and a null context afterwards.

    owner: object with the function. what and options ({name: value}) identify a compiled program.
    """
    programs = _compiled.setdefault(owner, set())
    program = (what, *options.items())
    if program in programs:
        return contextlib.nullcontext()
    programs.add(program)
    return timed(f"compiling {what}")


class Progress:
    """Counts `unit`s up to total (None if unknown). A context manager that closes the bar.

    write=False shows nothing; use it in processes other than the first.
    """

    def __init__(self, what: str, unit: str, total: int | None = None, write: bool = True) -> None:
        self._write, self._total, self._seen, self._since = write, total, 0, time.monotonic()
        self._what, self._unit, self._last_line = what, unit, self._since
        form = None if total is None else f"{{desc}}: {BAR}"
        shown = {"disable": None if write else True, "leave": False}
        self._bar = make_bar(desc=what, unit=unit, total=total, bar_format=form, **shown)
        if write and self._bar.disable:
            log.info("%s%s …", what, "" if total is None else f": {total:,} {unit}s")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def advance(self, count: int) -> None:
        """Counts `count` more."""
        self._seen += count
        self._bar.update(count)
        if self._write and self._bar.disable and time.monotonic() - self._last_line > LINE_SECONDS:
            self.say(f"{self._what}: {self._seen:,}{f' of {self._total:,}' if self._total else ''} {self._unit}s")

    def say(self, text: str) -> None:
        """Prints a line above the bar. Without a terminal the line includes the remaining time."""
        if not self._write:
            return
        self._last_line = time.monotonic()
        if self._bar.disable and self._total and 0 < self._seen < self._total:
            left = (time.monotonic() - self._since) * (self._total - self._seen) / self._seen
            text = f"{text}  ETA {clock(left)}"
        write_line(text)


def clock(seconds: float) -> str:
    """Returns seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
