"""Nearest neighbours among features: precision and recall, density and coverage, the entropy of a set of points.

Distances are float32, on the default device, in blocks of block_size × block_size. The device holds the one or two
sets of features, each padded to whole blocks, and at most three blocks of distances: for 50,000 and 50,000 samples of
2,048 features, 2 · 410 MB + 13 MB. The host also holds a copy of the block that it is sending. Each feature size is
compiled once, whatever the number of samples.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from cfgjax.base.errors import UsageError
from cfgjax.evaluation.metrics.scores import feature_rows

Index = int | Int[Array, ""]  # traced inside jit
Radii = Float[Array, " _n"] | Float[np.ndarray, " _n"]


def neighbour_radii(features: ArrayLike, k: int = 3, *, block_size: int = 1024) -> Float[np.ndarray, " n"]:
    """Returns the distance of each point to its k-th nearest other point, float32 [N]; see `neighbour_distances`."""
    return neighbour_distances(features, k, block_size=block_size)[:, -1]


def neighbour_distances(features: ArrayLike, k: int, *, block_size: int = 1024) -> Float[np.ndarray, "n k"]:
    """Returns the distances of each point to its k nearest other points, ascending, float32 [N, k].

    features: [N, D]. A point is not its own neighbour, but its duplicates are, at distance 0.
    Raises UsageError unless 1 ≤ k < N.
    """
    features = feature_rows(features)
    if not 1 <= k < len(features):
        raise UsageError(f"k is {k} for {len(features)} points; need 1 ≤ k < {len(features)}")
    blocks = centred_blocks(features, features.mean(axis=0, dtype=np.float64), block_size)
    distances = []
    for i, x in enumerate(blocks):
        nearest = jnp.full((block_size, k), jnp.inf, jnp.float32)
        for j, y in enumerate(blocks):
            nearest = _merge_nearest(nearest, x, y, i * block_size, j * block_size, len(features))
        distances.append(np.asarray(nearest))
    return np.concatenate(distances)[: len(features)]


def precision_recall(
    reference: ArrayLike,
    generated: ArrayLike,
    *,
    k: int = 3,
    reference_radii: ArrayLike | None = None,
    block_size: int = 1024,
) -> tuple[float, float]:
    """Returns (precision, recall) of Kynkäänniemi et al. 2019, arXiv:1904.06991, eqs. (1)–(2).

    Precision is the share of generated points in the manifold of the reference, recall the share of reference points
    in the manifold of the generated ones. A point is in the manifold of a set if its distance from some point of the
    set is at most that from this point to its k-th nearest neighbour within the set.
    reference: [R, D]. generated: [N, D]. reference_radii: `neighbour_radii(reference, k)`, to compute it only once for
    many sets of samples.
    """
    inside = in_manifolds(reference, generated, k=k, reference_radii=reference_radii, block_size=block_size)
    return float(inside[0].mean()), float(inside[1].mean())


def in_manifolds(
    reference: ArrayLike,
    generated: ArrayLike,
    *,
    k: int = 3,
    reference_radii: ArrayLike | None = None,
    block_size: int = 1024,
) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " r"]]:
    """Returns whether each generated point is in the manifold of the reference, and vice versa; `precision_recall`."""
    reference = feature_rows(reference)
    generated = feature_rows(generated, reference.shape[1])
    reference_radii = radii_of(reference, reference_radii, k, block_size)
    radii_x = padded_radii(neighbour_radii(generated, k, block_size=block_size), block_size)
    radii_y = padded_radii(reference_radii, block_size)
    centre = reference.mean(axis=0, dtype=np.float64)
    ys = centred_blocks(reference, centre, block_size)
    x_inside, y_inside = np.zeros(radii_x.shape, bool), np.zeros(radii_y.shape, bool)
    for i, x in enumerate(centred_blocks(generated, centre, block_size)):
        inside = [_inside(x, y, radii_x[i], radius_y) for y, radius_y in zip(ys, radii_y, strict=True)]
        for j, (x_in_y, y_in_x) in enumerate(inside):
            x_inside[i] |= np.asarray(x_in_y)
            y_inside[j] |= np.asarray(y_in_x)
    return x_inside.ravel()[: len(generated)], y_inside.ravel()[: len(reference)]


def density_coverage(
    reference: ArrayLike,
    generated: ArrayLike,
    *,
    k: int = 5,
    reference_radii: ArrayLike | None = None,
    block_size: int = 1024,
) -> tuple[float, float]:
    """Returns (density, coverage) of Naeem et al. 2020, arXiv:2002.09797, eqs. (4) and (5).

    density = 1/(kM) Σ_j Σ_i 1[d(y_j, x_i) < r_k(x_i)] for M generated y and reference points x_i, whose k-th nearest
    neighbour in the reference is at r_k(x_i); coverage is the share of the reference points with a generated point
    nearer than r_k. For equal distributions E density = 1 and E coverage = 1 − Π_{i=1..k} (N−i)/(N+M−i).
    reference: [N, D]. generated: [M, D]. reference_radii: see `precision_recall`.
    """
    counts = ball_counts(reference, generated, k=k, reference_radii=reference_radii, block_size=block_size)
    return counts.density, counts.coverage


@dataclasses.dataclass(frozen=True, eq=False)
class BallCounts:
    """Which generated points are in which balls around reference points.

    balls: [M], number of balls that each generated point is in. points: [N], number of generated points in each ball.
    only: [N], index of the generated point in a ball that has one point; meaningless for the others.
    """

    k: int
    balls: Int[np.ndarray, " m"]
    points: Int[np.ndarray, " n"]
    only: Int[np.ndarray, " n"]

    @property
    def density(self) -> float:
        """Returns the mean number of balls that a generated point is in, over k."""
        return float(self.balls.mean() / self.k)

    @property
    def coverage(self) -> float:
        """Returns the share of balls that have a generated point."""
        return float((self.points > 0).mean())


def ball_counts(
    reference: ArrayLike,
    generated: ArrayLike,
    *,
    k: int,
    reference_radii: ArrayLike | None = None,
    block_size: int = 1024,
) -> BallCounts:
    """Returns the `BallCounts` of density and coverage, see `density_coverage`."""
    reference = feature_rows(reference)
    generated = feature_rows(generated, reference.shape[1])
    radii_y = padded_radii(radii_of(reference, reference_radii, k, block_size), block_size)
    centre = reference.mean(axis=0, dtype=np.float64)
    ys = centred_blocks(reference, centre, block_size)
    balls, (points, only) = [], np.zeros((2, *radii_y.shape), np.int64)
    for i, x in enumerate(centred_blocks(generated, centre, block_size)):
        found = [_nearer(x, y, r, i * block_size, len(generated)) for y, r in zip(ys, radii_y, strict=True)]
        balls.append(np.sum([np.asarray(in_balls) for in_balls, _, _ in found], axis=0))
        for j, (_, number, index) in enumerate(found):
            points[j] += np.asarray(number)
            only[j] += np.asarray(index)
    size = len(reference)
    return BallCounts(k, np.concatenate(balls)[: len(generated)], points.ravel()[:size], only.ravel()[:size])


def radii_of(
    reference: Float[np.ndarray, "n d"], radii: ArrayLike | None, k: int, block_size: int
) -> Float[np.ndarray, " _n"]:
    """Returns radii, by default `neighbour_radii(reference, k)`. Raises UsageError for another number of them."""
    if radii is None:
        return neighbour_radii(reference, k, block_size=block_size)
    if np.shape(radii) != reference.shape[:1]:
        raise UsageError(f"reference_radii have shape {np.shape(radii)} for {len(reference)} samples")
    return np.asarray(radii)


def knn_entropy(points: ArrayLike, *, k: int = 3) -> float:
    """Returns the Kozachenko–Leonenko estimate of the differential entropy of points [N, D], in nats.

    ψ(N) − ψ(k) + log V_D + (D/N) Σ_i log r_i, where r_i is the distance to the k-th nearest other point and V_D the
    volume of the unit ball (Kraskov et al. 2004, arXiv:cond-mat/0305641, eq. 20). The estimate is biased if the density
    varies within r_i, so it needs many points in more than a few dimensions.
    Raises UsageError if a point has k duplicates, since the estimate would be −∞.
    """
    points = feature_rows(points)
    num, dim = points.shape
    radii = neighbour_radii(points, k).astype(np.float64)
    if not radii.all():
        raise UsageError(f"{(radii == 0).sum()} of {num} points have {k} duplicates or more; their entropy is −∞")
    digamma_difference = math.fsum(1 / j for j in range(k, num))
    log_ball = dim / 2 * math.log(math.pi) - math.lgamma(dim / 2 + 1)
    return float(digamma_difference + log_ball + dim * np.log(radii).mean())


def centred_blocks(
    features: Float[np.ndarray, "n d"], centre: Float[np.ndarray, " d"], block_size: int
) -> list[Float[Array, "block d"]]:
    """Returns features − centre as a list of float32 [block_size, D] on the device, the last padded with zeros."""
    blocks = []
    for start in range(0, len(features), block_size):
        rows = (features[start : start + block_size] - centre).astype(np.float32)
        blocks.append(jnp.asarray(np.pad(rows, ((0, block_size - len(rows)), (0, 0)))))
    return blocks


def padded_radii(radii: ArrayLike, block_size: int) -> Float[np.ndarray, "blocks block_size"]:
    """Returns radii as float32 [blocks, block_size], padded with −1, which is below every distance."""
    radii = np.asarray(radii, np.float32)
    return np.pad(radii, (0, -len(radii) % block_size), constant_values=-1).reshape(-1, block_size)


def pairwise_distances(x: Float[Array, "b d"], y: Float[Array, "c d"]) -> Float[Array, "b c"]:
    """Returns ‖x_i − y_j‖.

    In up to 8 dimensions it is computed from the differences, which is exact for points close together. In more
    dimensions it is computed from ‖x‖² + ‖y‖² − 2 x·y; values below the rounding error of that sum count as 0, so that
    equal points have distance 0.
    """
    if x.shape[1] <= 8:
        return jnp.sqrt(sum(jnp.square(a[:, None] - b) for a, b in zip(x.T, y.T, strict=True)))
    norms = jnp.sum(jnp.square(x), axis=1)[:, None] + jnp.sum(jnp.square(y), axis=1)
    squares = norms - 2 * jnp.matmul(x, y.T, precision="highest")
    return jnp.sqrt(jnp.where(squares > 2.0**-18 * norms, squares, 0))  # 2⁻¹⁸: 32 units of float32's last place


@jax.jit
def _merge_nearest(
    nearest: Float[Array, "b k"], x: Float[Array, "b d"], y: Float[Array, "c d"], row: Index, column: Index, num: Index
) -> Float[Array, "b k"]:
    """Returns the k smallest distances of each x, ascending, among `nearest` and the distances to y.

    row, column: index of the first point of x and y among the num points. A point is not its own neighbour.
    """
    columns = column + jnp.arange(y.shape[0])
    other = (columns != (row + jnp.arange(x.shape[0]))[:, None]) & (columns < num)
    distances = jnp.where(other, pairwise_distances(x, y), jnp.inf)
    least, _ = jax.lax.top_k(-distances, min(nearest.shape[1], y.shape[0]))
    return -jax.lax.top_k(jnp.concatenate([-nearest, least], axis=1), nearest.shape[1])[0]


@jax.jit
def _inside(
    x: Float[Array, "b d"], y: Float[Array, "c d"], radius_x: Radii, radius_y: Radii
) -> tuple[Bool[Array, " b"], Bool[Array, " c"]]:
    """Returns (whether each x is within the radius of some y, whether each y is within the radius of some x)."""
    distances = pairwise_distances(x, y)
    return jnp.any(distances <= radius_y, axis=1), jnp.any(distances <= radius_x[:, None], axis=0)


@jax.jit
def _nearer(
    x: Float[Array, "b d"], y: Float[Array, "c d"], radius_y: Radii, first: Index, num: Index
) -> tuple[Int[Array, " b"], Int[Array, " c"], Int[Array, " c"]]:
    """Returns (number of y nearer to each x than their radius, number of such x of each y, sum of their indices).

    first: index of the first point of x among the num points.
    """
    index = first + jnp.arange(x.shape[0])
    nearer = (pairwise_distances(x, y) < radius_y) & (index < num)[:, None]
    return nearer.sum(axis=1), nearer.sum(axis=0), jnp.sum(jnp.where(nearer, index[:, None], 0), axis=0)
