"""The metrics: Fréchet and kernel distances, Inception Score, precision and recall, of features or logits.

`measure` computes these and the METRICS, of which every scalar reaches the table, the files and TensorBoard.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from cfgjax.evaluation.metrics.manifold import knn_entropy, neighbour_radii, precision_recall
from cfgjax.evaluation.metrics.scores import frechet_distance, inception_score, kernel_distance


class Metric(Protocol):
    """A metric of samples, which are added in blocks. Each process adds its own blocks, possibly none."""

    def update(self, labels: np.ndarray, samples: np.ndarray, outputs: Mapping[str, np.ndarray]) -> None:
        """Adds a block: labels [b], samples [b, …], and the feature network's outputs, such as "features" [b, d]."""

    def metrics(self) -> Mapping[str, float]:
        """Returns {name: value} over the blocks of all processes, see `distributed.collectives.summed`."""


METRICS: dict[str, Callable[[Any, Any], Metric]] = {}
"""name: (feature network, reference) → Metric, for each pass over the samples."""

__all__ = [
    "METRICS",
    "Metric",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "knn_entropy",
    "neighbour_radii",
    "precision_recall",
]
