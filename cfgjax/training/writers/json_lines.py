"""The writer of metrics.jsonl."""

from collections.abc import Mapping
from pathlib import Path

from cfgjax.runs import metrics_file


class MetricsFile:
    """Appends a line for each step. When a run is resumed, its lines after start_step are removed first."""

    def __init__(self, workdir: Path, start_step: int) -> None:
        metrics_file.rewind(workdir, start_step)
        self._file = open(workdir / metrics_file.METRICS_FILE, "a")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a line."""
        self._file.write(metrics_file.metrics_line(step, metrics))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
