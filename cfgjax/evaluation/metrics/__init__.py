"""The metrics: distances, Inception Score, precision and recall, density and coverage, of features or logits.

`measure` computes these and the METRICS, of which every scalar reaches the table, the files and TensorBoard.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from cfgjax.evaluation.metrics.density import DensityCoverage
from cfgjax.evaluation.metrics.extrapolation import ExtrapolatedDistance
from cfgjax.evaluation.metrics.manifold import density_coverage, knn_entropy, neighbour_radii, precision_recall
from cfgjax.evaluation.metrics.mind import Mind, mind
from cfgjax.evaluation.metrics.scores import frechet_distance, inception_score, kernel_distance


class Metric(Protocol):
    """A metric of samples, which are added in blocks. Each process adds its own blocks, possibly none.

    A metric with the attribute `takes_features` True has no `update`. Its method `metrics(features)` receives the
    features [N, D] of all samples in order, which such metrics share; it is left out by --noneighbours. A metric may
    have a method `influences() → {name: [N]}`, the influence of each sample on its values (`metrics.influence`), which
    is called after `metrics`; these values then have intervals.
    """

    def update(self, labels: np.ndarray, samples: np.ndarray, outputs: Mapping[str, np.ndarray]) -> None:
        """Adds a block: labels [b], samples [b, …], and the outputs of the feature network, such as "features" [b, d].

        outputs also has the "index" [b] of the samples.
        """

    def metrics(self) -> Mapping[str, float]:
        """Returns {name: value} over the blocks of all processes, see `distributed.collectives.summed`."""


METRICS: dict[str, Callable[[Any, Any], Any]] = {
    "density_coverage": DensityCoverage,
    "mind": Mind,
    "extrapolated_distance": ExtrapolatedDistance,
}
"""name: (feature network, reference) → Metric, for each pass over the samples."""

__all__ = [
    "METRICS",
    "Metric",
    "density_coverage",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "knn_entropy",
    "mind",
    "neighbour_radii",
    "precision_recall",
]
