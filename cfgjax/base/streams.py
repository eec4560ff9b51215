"""Standard output and error of a command, which goes on if nobody reads them or the disk under them is full."""

import contextlib
import errno
import io
import os
import sys


class LogFile(io.RawIOBase):
    """A file descriptor for a log. What cannot be written to it is dropped, and the gap is marked once it can.

    failure: the first OSError of a write, other than that of a reader who has gone; None if there was none.
    """

    def __init__(self, number):
        self._number, self._dropped = number, 0
        self.failure = None

    def write(self, data):
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

    def _write(self, data):
        while data:
            data = data[os.write(self._number, data) :]

    def writable(self):
        """Returns True."""
        return True

    def fileno(self):
        """Returns the file descriptor."""
        return self._number

    def isatty(self):
        """Returns whether it is a terminal."""
        with contextlib.suppress(OSError):
            return os.isatty(self._number)
        return False


def keep_going():
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


def dropping(stream, number):
    """Returns the text stream of a descriptor, with the encoding and buffering of `stream`. A replaced one is kept."""
    if stream is not None and not is_own(stream, number):
        return stream
    raw = LogFile(number)
    encoding = "utf-8" if stream is None else stream.encoding
    unbuffered = stream is not None and stream.write_through
    options = {} if stream is None else {"line_buffering": stream.line_buffering, "write_through": unbuffered}
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),
        encoding=encoding,
        errors="backslashreplace",  # file names may be invalid UTF-8
        **options,
    )


def is_own(stream, number):
    """Returns whether a stream is Python's own for a descriptor, and not one that replaced it."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() == number
    return False


def lost_output():
    """Returns why a part of the standard output could not be written, or None."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    buffer = getattr(sys.stdout, "buffer", None)
    return getattr(getattr(buffer, "raw", buffer), "failure", None)
