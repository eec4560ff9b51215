"""MIND, a sliced Wasserstein distance between features (arXiv:2605.06797, as torch-fidelity computes it)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike

from cfgjax.evaluation.metrics.scores import feature_rows

NUM_DIRECTIONS = 1000
DIRECTIONS_AT_ONCE = 50  # of whose projections there are a few copies in memory, 400 N bytes each
ROWS_AT_ONCE = 1000  # features of which a centred copy is made


def mind(reference: ArrayLike, generated: ArrayLike, *, num_directions: int = NUM_DIRECTIONS, seed: int = 0) -> float:
    """Returns 3d · mean over unit directions u of W₂²(u·x, u·y), the mean squared difference of sorted projections.

    For Gaussians of equal covariance with means Δ apart it is 3‖Δ‖². reference: [M, d]. generated: [N, d]. seed: of the
    directions. If M ≠ N, W₂² = ∫₀¹ (F⁻¹(q) − G⁻¹(q))² dq of the two step functions is summed exactly over the union of
    their steps; no sample is left out or interpolated.
    """
    return mind_influence(reference, generated, num_directions=num_directions, seed=seed, influence=False)[0]


def mind_influence(
    reference: ArrayLike,
    generated: ArrayLike,
    *,
    num_directions: int = NUM_DIRECTIONS,
    seed: int = 0,
    influence: bool = True,
) -> tuple[float, Float[np.ndarray, " n"]]:
    """Returns (`mind`, influence of each generated sample on it, with mean 0; see `influence`).

    The influence on W₂² is the Kantorovich potential φ of optimal transport: φ(x_{i+1}) − φ(x_i) = (x_{i+1} − g)² −
    (x_i − g)² for consecutive projections, where g is the reference's projection that is matched with both.
    influence: whether to compute it; otherwise it is empty.
    """
    reference = feature_rows(reference)
    generated = feature_rows(generated, reference.shape[1])
    centre = reference.mean(axis=0, dtype=np.float64)
    (n, dim), m = generated.shape, len(reference)
    rows_x, rows_y, widths = common_steps(n, m)
    inner = np.arange(1, n) * m  # levels i/n between consecutive x, in units of 1/(nm)
    below, above = (inner - 1) // n, inner // n
    total, potential = 0.0, np.zeros(n if influence else 0)
    every = unit_directions(num_directions, dim, seed)
    for first in range(0, num_directions, DIRECTIONS_AT_ONCE):
        directions = every[first : first + DIRECTIONS_AT_ONCE]
        unsorted, py = (projections(rows, centre, directions) for rows in (generated, reference))
        order = np.argsort(unsorted, axis=0)
        px, py = np.take_along_axis(unsorted, order, axis=0), np.sort(py, axis=0)
        total += float(widths @ np.square(px[rows_x] - py[rows_y]).sum(axis=1))
        if influence:
            matched = py[below] + py[above]  # 2g
            steps = np.diff(px, axis=0) * (px[1:] + px[:-1] - matched)
            found = np.concatenate([np.zeros((1, px.shape[1])), np.cumsum(steps, axis=0)])
            for column, at in zip(found.T, order.T, strict=True):
                potential[at] += column
    scale = 3 * dim / num_directions
    return scale * total, scale * (potential - potential.mean()) if influence else potential


def projections(
    features: Shaped[np.ndarray, "n d"], centre: Float[np.ndarray, " d"], directions: Float[np.ndarray, "k d"]
) -> Float[np.ndarray, "n k"]:
    """Returns (features − centre)·u of each direction u: products in float32, as float64."""
    columns, found = directions.T.astype(np.float32), np.empty((len(features), len(directions)))
    for start in range(0, len(features), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        found[rows] = (features[rows] - centre).astype(np.float32) @ columns
    return found


def unit_directions(count: int, dim: int, seed: int) -> Float[np.ndarray, "count dim"]:
    """Returns directions that are uniform on the unit sphere, the same for the same seed."""
    directions = np.random.default_rng(seed).standard_normal((count, dim))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def common_steps(
    n: int, m: int
) -> tuple[Int[np.ndarray, " steps"], Int[np.ndarray, " steps"], Float[np.ndarray, " steps"]]:
    """Returns (i, j, width) of the intervals of [0, 1] on which the quantile functions of n and of m points are flat.

    i, j: the points, in order, whose values the two functions have there. The widths sum to 1.
    """
    levels = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # in units of 1/(nm)
    return (levels - 1) // m, (levels - 1) // n, np.diff(levels, prepend=0) / (n * m)


class Mind:
    """`mind` of the samples, if the reference has features."""

    takes_features = True

    def __init__(self, network: Any, reference: Any) -> None:
        self._name, self._reference = network.metric("MIND"), reference
        self._influence: np.ndarray | None = None

    def metrics(self, features: Float[np.ndarray, "n d"]) -> Mapping[str, float]:
        """Returns {MIND: float} of the features of all samples."""
        if self._reference.features is None:
            return {}
        value, self._influence = mind_influence(self._reference.features, features)
        return {self._name: value}

    def influences(self) -> Mapping[str, Float[np.ndarray, " n"]]:
        """Returns {MIND: influence of each sample}."""
        return {} if self._influence is None else {self._name: self._influence}
