"""Density and coverage as a metric of a frontier."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from cfgjax.evaluation.metrics.influence import coverage_influence, mean_influence
from cfgjax.evaluation.metrics.manifold import BallCounts, ball_counts

DENSITY_NEIGHBOURS = 5  # k of density and coverage, that of the paper


class DensityCoverage:
    """`density_coverage` with k = 5, if the reference has features of more than 5 images."""

    takes_features = True

    def __init__(self, network: Any, reference: Any) -> None:
        self._reference = reference
        self._counts: BallCounts | None = None

    def metrics(self, features: Float[np.ndarray, "n d"]) -> Mapping[str, float]:
        """Returns {density, coverage: float} of the features of all samples."""
        known = self._reference.features
        if known is None or len(known) <= DENSITY_NEIGHBOURS:
            return {}
        radii = self._reference.radii(DENSITY_NEIGHBOURS)
        counts = self._counts = ball_counts(known, features, k=DENSITY_NEIGHBOURS, reference_radii=radii)
        return {"density": counts.density, "coverage": counts.coverage}

    def influences(self) -> Mapping[str, Float[np.ndarray, " n"]]:
        """Returns {density, coverage: influence of each sample}."""
        counts = self._counts
        if counts is None:
            return {}
        return {"density": mean_influence(counts.balls / counts.k), "coverage": coverage_influence(counts)}
