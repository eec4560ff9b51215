"""The logs of a sweep's runs, each of which only one sweep may write."""

import contextlib
import fcntl
import logging
import threading

from cfgjax.base import storage
from cfgjax.base.errors import UsageError
from cfgjax.base.lease import lock
from cfgjax.base.storage import AnyPath
from cfgjax.jobs.sweep import run_records

log = logging.getLogger("cfgjax")

SEND_SECONDS = 30.0  # between copies of a growing log to a bucket
LOCKS = ".locks"  # folder of the leases, apart from the runs' folders, which the runs lease themselves


class Busy(Exception):
    """A process of another sweep is executing this run."""


def open_log(out: AnyPath, name: str) -> "DiskLog | BucketLog":
    """Returns the `DiskLog` or `BucketLog` of a run. Raises Busy if another sweep has it."""
    return BucketLog(out, name) if storage.is_url(out) else DiskLog(out, name)


class DiskLog:
    """A log on a disk. It stays locked as long as a process that inherited `file` lives. file: open for appending."""

    def __init__(self, out: AnyPath, name: str) -> None:
        self.file = open(run_records.log_path(out, name), "ab", buffering=0)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.close()
            raise Busy from None

    def send(self) -> None:
        """Does nothing: what is written is in its place."""

    def close(self) -> None:
        """Releases the log."""
        self.file.close()


class BucketLog:
    """A log that is written on the disk and copied to a bucket by a thread. The run is leased until it is closed."""

    def __init__(self, out: AnyPath, name: str) -> None:
        self._path, self._sent, self._closed = run_records.log_path(out, name), -1, threading.Event()
        try:
            self._lease = lock(storage.place(out) / LOCKS / name, lambda holder: f"{name} is executed by {holder}")
        except UsageError:
            raise Busy from None
        self._ends = contextlib.ExitStack()
        self._local = self._ends.enter_context(storage.temporary_folder()) / self._path.name
        with contextlib.suppress(FileNotFoundError):  # of an earlier start
            self._local.write_bytes(self._path.read_bytes())
        self.file = self._ends.enter_context(open(self._local, "ab", buffering=0))
        self._sending = threading.Lock()
        threading.Thread(target=self._send_now_and_then, name="log of a run", daemon=True).start()

    def _send_now_and_then(self) -> None:
        while not self._closed.wait(SEND_SECONDS):
            self.send()

    def send(self) -> None:
        """Copies the log to the bucket if it has grown. A failure is reported and does not end the sweep."""
        with self._sending:
            if (size := self._local.stat().st_size) == self._sent:
                return
            try:
                storage.send_file(self._local, self._path)
                self._sent = size
            except OSError as e:
                log.warning("cannot copy a log to %s: %s", self._path, e)

    def close(self) -> None:
        """Sends the rest and releases the run."""
        self._closed.set()
        self.send()
        self._ends.close()
        self._lease.close()
