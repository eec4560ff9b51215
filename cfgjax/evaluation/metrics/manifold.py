"""Nearest neighbours among features: precision and recall, and the entropy of a cloud of points.

Distances are float32, on the default device, in blocks of block_size × block_size. The device holds the one or two
sets of features, each padded to whole blocks, and at most three blocks of distances: for 50,000 and 50,000 samples of
2,048 features, 2 · 410 MB + 13 MB. The host adds the blocks it is sending to the sets it was given. Each feature size
is compiled once, whatever the number of samples.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from cfgjax.base.errors import UsageError
from cfgjax.evaluation.metrics.scores import feature_rows


def neighbour_radii(features, k=3, *, block_size=1024):
    """Distance of each point to its k-th nearest other point, float32 [N].

    features: [N, D]. A point is not its own neighbour; its duplicates are, at distance 0.
    Raises UsageError unless 1 ≤ k < N.
    """
    features = feature_rows(features)
    if not 1 <= k < len(features):
        raise UsageError(f"k is {k} for {len(features)} points; need 1 ≤ k < {len(features)}")
    blocks = _blocks(features, features.mean(axis=0, dtype=np.float64), block_size)
    radii = []
    for i, x in enumerate(blocks):
        nearest = jnp.full((block_size, k), jnp.inf, jnp.float32)
        for j, y in enumerate(blocks):
            nearest = _merge_nearest(nearest, x, y, i * block_size, j * block_size, len(features))
        radii.append(np.asarray(nearest[:, -1]))
    return np.concatenate(radii)[: len(features)]


def precision_recall(reference, generated, *, k=3, reference_radii=None, block_size=1024):
    """(precision, recall) of Kynkäänniemi et al. 2019, arXiv:1904.06991, eqs. (1)–(2), floats.

    Precision is the share of generated points in the manifold of the reference, recall that of the reference points
    in the manifold of the generated. A point is in the manifold of a set if it is no further from some point of the
    set than that point's k-th nearest neighbour within the set.
    reference: [R, D]. generated: [N, D]. reference_radii: `neighbour_radii(reference, k)`, where one reference meets
    many samples.
    """
    reference = feature_rows(reference)
    generated = feature_rows(generated, reference.shape[1])
    if reference_radii is None:
        reference_radii = neighbour_radii(reference, k, block_size=block_size)
    if np.shape(reference_radii) != reference.shape[:1]:
        raise UsageError(f"reference_radii have shape {np.shape(reference_radii)} for {len(reference)} samples")
    radii_x = _padded_radii(neighbour_radii(generated, k, block_size=block_size), block_size)
    radii_y = _padded_radii(reference_radii, block_size)
    centre = reference.mean(axis=0, dtype=np.float64)
    ys = _blocks(reference, centre, block_size)
    x_inside, y_inside = np.zeros(radii_x.shape, bool), np.zeros(radii_y.shape, bool)
    for i, x in enumerate(_blocks(generated, centre, block_size)):
        found = [_inside(x, y, radii_x[i], radius_y) for y, radius_y in zip(ys, radii_y, strict=True)]
        for j, (x_in_y, y_in_x) in enumerate(found):
            x_inside[i] |= np.asarray(x_in_y)
            y_inside[j] |= np.asarray(y_in_x)
    return float(x_inside.ravel()[: len(generated)].mean()), float(y_inside.ravel()[: len(reference)].mean())


def knn_entropy(points, *, k=3):
    """Kozachenko–Leonenko estimate of the differential entropy of the density behind points [N, D], nats, a float.

    ψ(N) − ψ(k) + log V_D + (D/N) Σ_i log r_i, with r_i the distance to the k-th nearest other point and V_D the volume
    of the unit ball (Kraskov et al. 2004, arXiv:cond-mat/0305641, eq. 20).
    In more than a few dimensions it needs many points: an r_i across which the density varies biases it.
    Raises UsageError where a point has k duplicates: the estimate would be −∞.
    """
    points = feature_rows(points)
    num, dim = points.shape
    radii = neighbour_radii(points, k).astype(np.float64)
    if not radii.all():
        raise UsageError(f"{(radii == 0).sum()} of {num} points have {k} duplicates or more; their entropy is −∞")
    digamma_difference = math.fsum(1 / j for j in range(k, num))
    log_ball = dim / 2 * math.log(math.pi) - math.lgamma(dim / 2 + 1)
    return float(digamma_difference + log_ball + dim * np.log(radii).mean())


def _blocks(features, centre, block_size):
    """features − centre as a list of float32 [block_size, D] on the device, the last padded with zeros."""
    blocks = []
    for start in range(0, len(features), block_size):
        rows = (features[start : start + block_size] - centre).astype(np.float32)
        blocks.append(jnp.asarray(np.pad(rows, ((0, block_size - len(rows)), (0, 0)))))
    return blocks


def _padded_radii(radii, block_size):
    """radii as float32 [blocks, block_size], the last padded with −1, a radius that nothing is within."""
    padding = -len(radii) % block_size
    return np.pad(np.asarray(radii, np.float32), (0, padding), constant_values=-1).reshape(-1, block_size)


def _distances(x, y):
    """‖x_i − y_j‖ of x [B, D] and y [C, D], [B, C].

    Up to 8 dimensions from the differences, which keeps the digits of points close together. Above from
    ‖x‖² + ‖y‖² − 2 x·y, where what is below the rounding of that sum is 0, so that equal points are at distance 0.
    """
    if x.shape[1] <= 8:
        return jnp.sqrt(sum(jnp.square(a[:, None] - b) for a, b in zip(x.T, y.T, strict=True)))
    norms = jnp.sum(jnp.square(x), axis=1)[:, None] + jnp.sum(jnp.square(y), axis=1)
    squares = norms - 2 * jnp.matmul(x, y.T, precision="highest")
    return jnp.sqrt(jnp.where(squares > 2.0**-18 * norms, squares, 0))  # 2⁻¹⁸: 32 units of float32's last place


@jax.jit
def _merge_nearest(nearest, x, y, row, column, num):
    """nearest [B, k], the least distances of x [B, D] so far, ascending, with the distances to y [C, D] taken in.

    row, column: index of the first point of x and y among the num points; a point is left out of its own neighbours.
    """
    columns = column + jnp.arange(y.shape[0])
    other = (columns != (row + jnp.arange(x.shape[0]))[:, None]) & (columns < num)
    distances = jnp.where(other, _distances(x, y), jnp.inf)
    least, _ = jax.lax.top_k(-distances, min(nearest.shape[1], y.shape[0]))
    return -jax.lax.top_k(jnp.concatenate([-nearest, least], axis=1), nearest.shape[1])[0]


@jax.jit
def _inside(x, y, radius_x, radius_y):
    """Whether each of x [B, D] is within some y's radius, bool [B], and each of y [C, D] within some x's, bool [C]."""
    distances = _distances(x, y)
    return jnp.any(distances <= radius_y, axis=1), jnp.any(distances <= radius_x[:, None], axis=0)
