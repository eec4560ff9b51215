"""Standard output and error of a command, which goes on if nobody reads them or the disk under them is full."""

import contextlib
import errno
import io
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO, TypeGuard

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    TextFile = TextIO
else:
    TextFile = io.TextIOBase  # an open text file; checkers at run time demand an attribute `mode` of a TextIO


class LogFile(io.RawIOBase):
    """A file descriptor for a log. What cannot be written to it is dropped, and the gap is marked once it can.

    failure: the first OSError of a write, other than that of a reader who has gone; None if there was none.
    """

    def __init__(self, number: int) -> None:
        self._number, self._dropped = number, 0
        self.failure: OSError | None = None

    def write(self, data: "ReadableBuffer") -> int:
        """Writes all of data, or drops the rest. Returns the number of its bytes."""
        data = bytes(data)
        try:
            if self._dropped:
                self._write(f"\n… {self._dropped} lines could not be written …\n".encode())
                self._dropped = 0
            self._write(data)
        except OSError as e:
            self._dropped += data.count(b"\n")
            if e.errno != errno.EPIPE:
                self.failure = self.failure or e
        return len(data)

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._number, data) :]

    def writable(self) -> bool:
        """Returns True."""
        return True

    def fileno(self) -> int:
        """Returns the file descriptor."""
        return self._number

    def isatty(self) -> bool:
        """Returns whether it is a terminal."""
        with contextlib.suppress(OSError):
            return os.isatty(self._number)
        return False


def keep_going() -> None:
    """Replaces sys.stdout and sys.stderr by streams that drop what cannot be written.

    A descriptor that is closed is opened on /dev/null: otherwise the next file that is opened would take its number,
    and whatever prints would write into that file.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout, sys.stderr = (dropping(stream, number) for stream, number in ((sys.stdout, 1), (sys.stderr, 2)))


def dropping(stream: TextFile | None, number: int) -> TextFile:
    """Returns the text stream of a descriptor, with the encoding and buffering of `stream`. A replaced one is kept."""
    if stream is not None and not is_own(stream, number):
        return stream
    raw = LogFile(number)
    encoding = "utf-8" if stream is None else stream.encoding
    unbuffered = stream is not None and stream.write_through
    options: dict[str, Any] = (
        {} if stream is None else {"line_buffering": stream.line_buffering, "write_through": unbuffered}
    )
    buffer: Any = raw if unbuffered else io.BufferedWriter(raw)  # without a name, which type checkers demand
    return io.TextIOWrapper(
        buffer,
        encoding=encoding,
        errors="backslashreplace",  # file names may be invalid UTF-8
        **options,
    )


def is_own(stream: TextFile, number: int) -> TypeGuard[io.TextIOWrapper]:
    """Returns whether a stream is Python's own for a descriptor, and not one that replaced it."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() == number
    return False


def lost_output() -> OSError | None:
    """Returns why a part of the standard output could not be written, or None."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    buffer = getattr(sys.stdout, "buffer", None)
    return getattr(getattr(buffer, "raw", buffer), "failure", None)
