"""The writer of TensorBoard's events."""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter

from cfgjax.base.storage import Place, send_file
from cfgjax.runs.settings import Settings
from cfgjax.training.writers.event_file import SCHEME


class TensorBoard:
    """Writes events into workdir, see `EventFile`. When a run is resumed, its events after start_step are purged."""

    def __init__(self, workdir: Place, start_step: int, settings: Settings) -> None:
        self._events = SummaryWriter(f"{SCHEME}:{workdir}", purge_step=start_step + 1 if start_step else None)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a scalar for each metric."""
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Adds a picture, uint8 [H, W, C]."""
        self._events.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        """Flushes and closes the events."""
        self._events.close()


class TensorBoardSegments:
    """Writes events on the disk and sends them to a bucket, one file for each checkpoint.

    `write` and `image` never wait for the server. guard: raises if this process may write no more.
    """

    def __init__(
        self, workdir: Place, start_step: int, settings: Settings, guard: Callable[[], None] = lambda: None
    ) -> None:
        self._workdir, self._folder = workdir, Path(tempfile.mkdtemp(prefix="cfgjax-events-"))
        self._guard, self._purged = guard, start_step + 1 if start_step else None
        self._adding, self._sending = threading.Lock(), threading.Lock()
        self._events: SummaryWriter | None = None
        self._closed = False

    def _open(self) -> SummaryWriter:
        if self._events is None:
            suffix = f".{time.time_ns()}"  # the name has only seconds, in which another file may have been sent
            self._events = SummaryWriter(str(self._folder), purge_step=self._purged, filename_suffix=suffix)
            self._purged = None
        return self._events

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a scalar for each metric."""
        with self._adding:
            for name, value in metrics.items():
                self._open().add_scalar(name, value, step)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Adds a picture, uint8 [H, W, C]."""
        with self._adding:
            self._open().add_image(name, np.asarray(picture), step, dataformats="HWC")

    def flush(self) -> None:
        """Sends the events so far. A file that cannot be sent is sent with the next."""
        with self._sending:
            if self._closed:
                return
            self._guard()
            with self._adding:
                if self._events is not None:
                    self._events.close()
                    self._events = None
                finished = sorted(self._folder.iterdir())
            for path in finished:
                send_file(path, self._workdir / path.name)
                path.unlink()

    def close(self) -> None:
        """Sends the last events."""
        try:
            self.flush()
        finally:
            with self._sending:
                self._closed = True
                shutil.rmtree(self._folder, ignore_errors=True)
