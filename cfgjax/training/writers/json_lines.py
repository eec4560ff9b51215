"""The writers of metrics.jsonl, and of its segments in a bucket."""

import contextlib
import logging
import threading
from collections.abc import Mapping

from cfgjax.base.storage import Place
from cfgjax.runs import metrics_file

log = logging.getLogger("cfgjax")

FLUSH_SECONDS = 30.0  # between writes of the newest segment while training goes on


class MetricsFile:
    """Appends a line for each step. When a run is resumed, its lines after start_step are removed first."""

    def __init__(self, workdir: Place, start_step: int) -> None:
        metrics_file.rewind(workdir, start_step)
        self._file = open(workdir / metrics_file.METRICS_FILE, "a")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a line."""
        self._file.write(metrics_file.metrics_line(step, metrics))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class MetricsSegments:
    """Writes lines into segments in a bucket, which has no append: the newest is written whole, again and again.

    Lines reach the bucket before the checkpoint of a later step is complete, by `flush`, and every FLUSH_SECONDS.
    """

    def __init__(self, workdir: Place, start_step: int) -> None:
        metrics_file.rewind(workdir, start_step)
        self._workdir, self._lock, self._closed = workdir, threading.Lock(), threading.Event()
        self._lines: list[str] = []  # of the newest segment
        self._first, self._changed = 0, False
        threading.Thread(target=self._flush_now_and_then, name="metrics", daemon=True).start()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a line."""
        with self._lock:
            if not self._lines:
                self._first = step
            self._lines.append(metrics_file.metrics_line(step, metrics))
            self._changed = True

    def flush(self) -> None:
        """Writes the newest segment, and begins another if it has become large."""
        with self._lock:
            if not self._changed:
                return
            text = "".join(self._lines)
            metrics_file.segment(self._workdir, self._first).write_text(text)
            self._changed = False
            if len(text) > metrics_file.SEGMENT_BYTES:
                self._lines = []

    def _flush_now_and_then(self) -> None:
        while not self._closed.wait(FLUSH_SECONDS):
            with contextlib.suppress(OSError):  # the client has reported it, and the next checkpoint waits for it
                self.flush()

    def close(self) -> None:
        """Writes what is left."""
        self._closed.set()
        self.flush()
