"""Writers: where the metrics and pictures of a run go. Only the first of several processes writes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from cfgjax.base.errors import UsageError, choose
from cfgjax.base.storage import Place, is_url
from cfgjax.runs.settings import Settings
from cfgjax.training.writers.json_lines import MetricsFile, MetricsSegments
from cfgjax.training.writers.mlflow_runs import MLflowRun
from cfgjax.training.writers.tensorboard import TensorBoard, TensorBoardSegments
from cfgjax.training.writers.weights_and_biases import WeightsAndBiases


class Writer(Protocol):
    """What a writer must have. It may also have `image(step, name, picture)`, `flush()` and `close()`.

    If the workdir is in a bucket, `flush` is called in another thread before the checkpoint of a step is complete.
    """

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step. Steps increase within a run; a resumed run continues after its last step."""


class PictureWriter(Writer, Protocol):
    """A writer that shows pictures."""

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Writes a picture, uint8 [H, W, C]."""


# name in config.log.writers: (workdir, the step at which the run starts or resumes, its settings) → an open writer.
# A class may have the static methods check() and check_workdir(workdir), which raise UsageError before the run starts.
WRITERS: dict[str, Callable[[Place, int, Settings], Writer]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflowRun,
}


def check_named(names: Sequence[str]) -> None:
    """Raises UsageError for an unknown writer, one that is named twice, or one that cannot be used on this machine."""
    for name in names:
        check = getattr(choose("writer", name, WRITERS), "check", None)
        if names.count(name) > 1:
            raise UsageError(f"config.log.writers names {name!r} twice")
        if check is not None:
            check()


def check_writers_in(workdir: Place, names: Sequence[str]) -> None:
    """Raises UsageError if one of the writers cannot be used with a workdir."""
    for name in names:
        check_workdir = getattr(WRITERS[name], "check_workdir", None)
        if check_workdir is not None:
            check_workdir(workdir)


# for a workdir in a bucket; with a function that raises if this process may write no more
IN_BUCKETS: dict[str, Callable[[Place, int, Settings, Callable[[], None]], Writer]] = {
    "tensorboard": TensorBoardSegments
}


def open_writers(
    workdir: Place, start_step: int, settings: Settings, guard: Callable[[], None] = lambda: None
) -> list[Any]:
    """Returns the writers of a run: that of metrics.jsonl, and those of config.log.

    guard: raises if this process may write no more, which can only happen in a bucket.
    """
    names, given = settings.log.writers, (workdir, start_step, settings)
    if not is_url(workdir):
        return [MetricsFile(workdir, start_step), *(WRITERS[name](*given) for name in names)]
    own = (IN_BUCKETS[name](*given, guard) if name in IN_BUCKETS else WRITERS[name](*given) for name in names)
    return [MetricsSegments(workdir, start_step, guard), *own]
