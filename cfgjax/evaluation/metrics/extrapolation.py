"""FID∞ (Chong & Forsyth 2020, arXiv:1911.07023): the Fréchet distance extrapolated to infinitely many samples."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from cfgjax.distributed import collectives
from cfgjax.evaluation.metrics.scores import Moments, frechet_distance

NUM_PARTS = 4
GOLDEN = (5**0.5 - 1) / 2


def part_of(index: Int[np.ndarray, " b"]) -> Int[np.ndarray, " b"]:
    """Returns the part ⌊4 frac(i φ)⌋ of each sample, φ = (√5 − 1)/2.

    The sizes of the parts differ by a few samples, and each part has its share of every class, whether labels are
    random or i mod K.
    """
    return (np.modf(index * GOLDEN)[0] * NUM_PARTS).astype(int)


class ExtrapolatedDistance:
    """FID∞, the intercept a of the least-squares fit FID(n) = a + b/n.

    Its points are the distance of all N samples, the mean of those of two halves, and the mean of those of four
    quarters: each point uses every sample once, so that what they have in common does not disturb the fit. Left out
    if a quarter has no more samples than there are features, since the bias is then not linear in 1/n.
    """

    def __init__(self, network: Any, reference: Any) -> None:
        self._name, self._reference = network.metric("FD_inf"), reference
        self._parts = [Moments.zeros(len(reference.mean)) for _ in range(NUM_PARTS)]

    def update(self, labels: np.ndarray, samples: np.ndarray, outputs: Mapping[str, np.ndarray]) -> None:
        """Adds the features of a block."""
        part = part_of(outputs["index"])
        for number, moments in enumerate(self._parts):
            moments.update(outputs["features"][part == number])

    def metrics(self) -> Mapping[str, float]:
        """Returns {FID_inf: float}."""
        quarters = [Moments(**collectives.summed(vars(part))) for part in self._parts]
        if min(int(part.count) for part in quarters) <= len(self._reference.mean):
            return {}
        halves = [quarters[0].merge(quarters[1]), quarters[2].merge(quarters[3])]
        groups = [[halves[0].merge(halves[1])], halves, quarters]
        inverse = [np.mean([1 / part.count for part in group]) for group in groups]
        distances = [np.mean([self._distance(part) for part in group]) for group in groups]
        return {self._name: float(np.polyfit(inverse, distances, 1)[1])}

    def _distance(self, own: Moments) -> float:
        known = self._reference
        return frechet_distance(known.mean, known.cov, own.mean, own.cov, sqrt1=known.root)
