"""Writers: where the metrics and pictures of a run go. Only the first of several processes writes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from cfgjax.training.writers.json_lines import MetricsFile
from cfgjax.training.writers.tensorboard import TensorBoard


class Writer(Protocol):
    """What a writer must have. It may also have `image(step, name, picture)` and `close()`."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step. Steps increase within a run; a resumed run continues after its last step."""


class PictureWriter(Writer, Protocol):
    """A writer that shows pictures."""

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Writes a picture, uint8 [H, W, C]."""


# name: (workdir, the step at which the run starts or resumes) → an open writer of every run
WRITERS: dict[str, Callable[[Path, int], Writer]] = {"metrics_file": MetricsFile, "tensorboard": TensorBoard}
