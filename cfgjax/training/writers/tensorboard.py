"""The writer of TensorBoard's events."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter

from cfgjax.runs.settings import Settings
from cfgjax.training.writers.event_file import SCHEME


class TensorBoard:
    """Writes events into workdir, see `EventFile`. When a run is resumed, its events after start_step are purged."""

    def __init__(self, workdir: Path, start_step: int, settings: Settings) -> None:
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
