"""The influence of each sample on recall, found by leaving it out."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import ArrayLike

from cfgjax.base.errors import UsageError
from cfgjax.evaluation.metrics.influence import mean_influence
from cfgjax.evaluation.metrics.manifold import Index, Radii, centred_blocks, padded_radii, pairwise_distances
from cfgjax.evaluation.metrics.scores import feature_rows


def recall_influence(
    reference: ArrayLike, generated: ArrayLike, *, k: int = 3, block_size: int = 1024
) -> Float[np.ndarray, " n"]:
    """Returns (N − 1) times the change of `precision_recall`'s recall if a sample is left out, with mean 0.

    Exact: without a sample its ball is gone, and the balls of the samples that have it among their k nearest
    neighbours grow to their (k+1)-th neighbour.
    """
    reference = feature_rows(reference)
    generated = feature_rows(generated, reference.shape[1])
    size, num = len(reference), len(generated)
    if not 1 <= k < num - 1:
        raise UsageError(f"k is {k} for {num} samples; need 1 ≤ k < {num - 1} to leave one out")
    distances, neighbours = nearest_points(generated, k + 1, block_size)
    inner, outer = (padded_radii(distances[:, i], block_size) for i in (k - 1, k))
    centre = reference.mean(axis=0, dtype=np.float64)
    xs, ys = (centred_blocks(rows, centre, block_size) for rows in (generated, reference))
    number, only = np.zeros((2, len(ys), block_size), np.int64)
    for i, x in enumerate(xs):
        for j, (balls, index) in enumerate([_balls(x, y, inner[i], i * block_size) for y in ys]):
            number[j] += np.asarray(balls)
            only[j] += np.asarray(index)
    pairs = [np.empty((2, 0), np.int64)]  # (sample, reference point) where the point is in the ball only once it grows
    for i, x in enumerate(xs):
        for j, ring in enumerate([_ring(x, y, inner[i], outer[i], number[j] <= 1) for j, y in enumerate(ys)]):
            offset = np.array([[i], [j]]) * block_size
            pairs.append(np.array(np.nonzero(np.asarray(ring))) + offset)
    number, only = number.ravel()[:size], only.ravel()[:size]
    ball, point = np.concatenate(pairs, axis=1)
    ball, point = ball[point < size], point[point < size]
    causes = np.unique((neighbours[ball, :k] * size + point[:, None]).ravel())  # leaving out sample makes it grow
    sample, point = causes // size, causes % size
    gained = np.bincount(sample[number[point] == 0], minlength=num)
    lost = np.bincount(only[number == 1], minlength=num)
    spared = np.bincount(sample[(number[point] == 1) & (only[point] == sample)], minlength=num)
    return mean_influence((num - 1) / size * (lost - spared - gained))


def nearest_points(
    features: Float[np.ndarray, "n d"], k: int, block_size: int
) -> tuple[Float[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
    """Returns (distances, indices) of the k nearest other points of each point."""
    blocks = centred_blocks(features, features.mean(axis=0, dtype=np.float64), block_size)
    distances, indices = [], []
    for i, x in enumerate(blocks):
        found = jnp.full((block_size, k), jnp.inf, jnp.float32), jnp.zeros((block_size, k), jnp.int32)
        for j, y in enumerate(blocks):
            found = _merge_points(*found, x, y, i * block_size, j * block_size, len(features))
        distances.append(np.asarray(found[0]))
        indices.append(np.asarray(found[1], np.int64))
    return np.concatenate(distances)[: len(features)], np.concatenate(indices)[: len(features)]


@jax.jit
def _merge_points(
    nearest: Float[Array, "b k"],
    indices: Int[Array, "b k"],
    x: Float[Array, "b d"],
    y: Float[Array, "c d"],
    row: Index,
    column: Index,
    num: Index,
) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
    """Returns the k smallest distances of each x and their points, among those known and y; see `manifold`."""
    columns = column + jnp.arange(y.shape[0], dtype=jnp.int32)
    other = (columns != (row + jnp.arange(x.shape[0]))[:, None]) & (columns < num)
    distances = jnp.concatenate([nearest, jnp.where(other, pairwise_distances(x, y), jnp.inf)], axis=1)
    points = jnp.concatenate([indices, jnp.broadcast_to(columns, other.shape)], axis=1)
    least, at = jax.lax.top_k(-distances, nearest.shape[1])
    return -least, jnp.take_along_axis(points, at, axis=1)


@jax.jit
def _balls(
    x: Float[Array, "b d"], y: Float[Array, "c d"], radius_x: Radii, first: Index
) -> tuple[Int[Array, " c"], Int[Array, " c"]]:
    """Returns (number of the x in whose ball each y is, sum of their indices). first: index of the first x."""
    inside = pairwise_distances(x, y) <= radius_x[:, None]
    index = first + jnp.arange(x.shape[0])
    return inside.sum(axis=0), jnp.sum(jnp.where(inside, index[:, None], 0), axis=0)


@jax.jit
def _ring(
    x: Float[Array, "b d"], y: Float[Array, "c d"], inner: Radii, outer: Radii, wanted: Bool[np.ndarray | Array, " c"]
) -> Bool[Array, "b c"]:
    """Returns whether each wanted y is in the ball of each x of the outer radius, but not of the inner one."""
    distances = pairwise_distances(x, y)
    return (distances > inner[:, None]) & (distances <= outer[:, None]) & wanted
