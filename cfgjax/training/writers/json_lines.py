"""The writers of metrics.jsonl, and of its segments in a bucket."""

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping

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
    `write` never waits for the server. guard: raises if this process may write no more.
    """

    def __init__(self, workdir: Place, start_step: int, guard: Callable[[], None] = lambda: None) -> None:
        metrics_file.rewind(workdir, start_step)
        self._workdir, self._guard, self._closed = workdir, guard, threading.Event()
        self._adding, self._sending = threading.Lock(), threading.Lock()
        # (step, line) of the newest segment; hooks that run again at start_step may add to the one of that name
        begun = metrics_file.read_lines(metrics_file.segment(workdir, start_step))
        self._lines = [(start_step, f"{line.decode()}\n") for line in begun]
        self._changed = False
        threading.Thread(target=self._flush_now_and_then, name="metrics", daemon=True).start()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a line."""
        with self._adding:
            self._lines.append((step, metrics_file.metrics_line(step, metrics)))
            self._changed = True

    def flush(self) -> None:
        """Writes the newest segment, and begins another if it has become large."""
        with self._sending:
            if not self._changed:
                return
            self._guard()
            with self._adding:
                lines, self._changed = list(self._lines), False
            text = "".join(line for _, line in lines)
            try:
                metrics_file.segment(self._workdir, lines[0][0]).write_text(text)
            except OSError:
                self._changed = True
                raise
            if len(text) > metrics_file.SEGMENT_BYTES:
                with self._adding:
                    added = self._lines[len(lines) :]
                    if not added or added[0][0] > lines[0][0]:
                        self._lines = added

    def _flush_now_and_then(self) -> None:
        while not self._closed.wait(FLUSH_SECONDS):
            with contextlib.suppress(OSError):  # the client has reported it, and the next checkpoint waits for it
                self.flush()

    def close(self) -> None:
        """Writes what is left."""
        self._closed.set()
        self.flush()
