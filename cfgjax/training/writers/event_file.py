"""The file of TensorBoard's events, in a form that a full disk does not end.

metrics.jsonl has the same metrics, so training goes on if events cannot be written. tensorboardX writes them in a
thread: an error there would end the thread, and training would wait forever for the thread to take more.
"""

import logging
import os
import threading

from tensorboardX.record_writer import register_writer_factory

log = logging.getLogger("cfgjax")

SCHEME = "cfgjax-events"  # of the paths that tensorboardX opens with `EventFiles`
BUFFER_BYTES = 8192  # written at once
MAX_WAITING_BYTES = 2**26  # retained while the disk is full


class EventFile:
    """A file that retains what cannot be written and writes it later, in order. It warns once."""

    def __init__(self, path: str) -> None:
        self._path, self._waiting, self._lock = path, bytearray(), threading.Lock()
        self._failed = self._full = False
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)

    def write(self, data: bytes) -> None:
        """Adds data, unless data before it are lost."""
        with self._lock:
            self._full = self._full or len(self._waiting) > MAX_WAITING_BYTES
            if not self._full:
                self._waiting += data
        if len(self._waiting) > BUFFER_BYTES:
            self._write_waiting()

    def flush(self) -> None:
        """Writes what is waiting, as far as the disk takes it, and has the system store it."""
        self._write_waiting(store=True)

    def _write_waiting(self, *, store: bool = False) -> None:
        with self._lock:
            try:
                while self._waiting:
                    del self._waiting[: os.write(self._file, self._waiting)]
                if store:
                    os.fsync(self._file)
            except OSError as e:
                if not self._failed:
                    log.warning("%s cannot be written (%s); training goes on, and it is tried again", self._path, e)
                self._failed = True

    def close(self) -> None:
        """Writes what is waiting, says if it is lost, and closes the file."""
        self.flush()
        if self._waiting:
            log.warning("%s is not complete; metrics.jsonl has all metrics", self._path)
        os.close(self._file)


class EventFiles:
    """What tensorboardX needs to open files of a scheme."""

    def open(self, path: str) -> EventFile:
        """Returns the file of a path with the scheme."""
        return EventFile(path.removeprefix(f"{SCHEME}:"))

    def directory_check(self, path: str) -> None:
        """Creates the folder of a path with the scheme."""
        os.makedirs(path.removeprefix(f"{SCHEME}:"), exist_ok=True)


register_writer_factory(SCHEME, EventFiles())
