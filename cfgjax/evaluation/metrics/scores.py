"""Distances between a reference and generated samples, from features or logits, streamed in float64 on the host.

They apply to the features of any network; FID, KID and the inception score are defined on the Inception network of
2015-12-05.
"""

import dataclasses
import itertools

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy.typing import ArrayLike

from cfgjax.base.errors import UsageError


def feature_rows(features: ArrayLike, size: int | None = None) -> Shaped[np.ndarray, "n d"]:
    """Returns features as a numpy array [N, D], without a copy if they are on the host.

    Raises UsageError unless they have two axes, the second of this size, and only finite values.
    """
    features = np.asarray(features)
    if features.ndim != 2 or size not in (None, features.shape[1]):
        raise UsageError(f"features have shape {features.shape}; need [N, {'D' if size is None else size}]")
    if not np.isfinite([features.min(initial=0), features.max(initial=0)]).all():  # needs no booleans of shape [N, D]
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        raise UsageError(f"{len(bad)} of {len(features)} feature rows are not finite; the first is row {bad[0]}")
    return features


@dataclasses.dataclass(eq=False)
class Moments:
    """n, Σ f and Σ f fᵀ in float64, for the mean and covariance of features added in any order and any chunks."""

    count: int
    total: np.ndarray  # [D]
    outer: np.ndarray  # [D, D]

    @classmethod
    def zeros(cls, size: int) -> "Moments":
        """Returns the moments of an empty set of features of D = size dimensions."""
        return cls(0, np.zeros(size), np.zeros((size, size)))

    def update(self, features: ArrayLike) -> None:
        """Adds features [B, D] in place."""
        features = feature_rows(features, len(self.total)).astype(np.float64)
        self.count += len(features)
        self.total += features.sum(axis=0)
        self.outer += features.T @ features

    def merge(self, other: "Moments") -> "Moments":
        """Returns the moments of the union of both sets of features, the sums of the three fields."""
        if other.total.shape != self.total.shape:
            raise UsageError(f"moments of {len(self.total)} and of {len(other.total)} features cannot be merged")
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

    @property
    def mean(self) -> Float[np.ndarray, " d"]:
        """Returns Σ f / n."""
        if self.count < 1:
            raise UsageError("0 samples have no mean; need at least 1")
        return self.total / self.count

    @property
    def cov(self) -> Float[np.ndarray, "d d"]:
        """Returns the unbiased covariance Σ (f − f̄)(f − f̄)ᵀ / (n − 1)."""
        if self.count < 2:
            raise UsageError(f"a covariance needs at least 2 samples, got {self.count}")
        return (self.outer - np.outer(self.total, self.mean)) / (self.count - 1)


def matrix_sqrt(cov: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """Returns Σ^(1/2), the symmetric root of a covariance. Negative eigenvalues, due to rounding, count as 0."""
    values, vectors = np.linalg.eigh(cov)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def frechet_distance(
    mean1: ArrayLike,
    cov1: ArrayLike,
    mean2: ArrayLike,
    cov2: ArrayLike,
    *,
    sqrt1: Float[np.ndarray, "d d"] | None = None,
) -> float:
    """Returns ‖μ₁ − μ₂‖² + Tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^(1/2)) of two Gaussians.

    On Inception's pooled features this is FID (Heusel et al. 2017, arXiv:1706.08500), on its spatial features sFID
    (Nash et al. 2021, arXiv:2103.03841). The root's trace is computed from √Σ₁ Σ₂ √Σ₁, which is symmetric and has the
    same eigenvalues as Σ₁Σ₂. sqrt1: `matrix_sqrt(cov1)`, to compute it only once for many sets of samples.
    Equal Gaussians give 0 up to rounding of either sign. Raises UsageError for unequal shapes or non-finite values.
    """
    mean1, cov1, mean2, cov2 = (np.asarray(a, np.float64) for a in (mean1, cov1, mean2, cov2))
    shapes = [a.shape for a in (mean1, cov1, mean2, cov2)]
    if not (mean1.ndim == 1 and mean1.shape == mean2.shape and cov1.shape == cov2.shape == mean1.shape * 2):
        raise UsageError(f"means and covariances have shapes {', '.join(map(str, shapes))}; need [D], [D, D] twice")
    if not all(np.isfinite(a).all() for a in (mean1, cov1, mean2, cov2)):
        raise UsageError("a mean or covariance is not finite")
    sqrt1 = matrix_sqrt(cov1) if sqrt1 is None else sqrt1
    values = np.linalg.eigvalsh(sqrt1 @ cov2 @ sqrt1)
    cross = np.sqrt(np.maximum(values, 0)).sum()
    return float(np.square(mean1 - mean2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * cross)


def split_bounds(
    num_samples: int, splits: int | None = None, split_size: int | None = None
) -> Int[np.ndarray, " bounds"]:
    """Returns the sample indices at which the splits of an inception score begin, and the end, int [S + 1].

    Set exactly one of the two. splits: their number S, with bounds i N // S. split_size: their size; the last split may
    be smaller (OpenAI's evaluator: 5000).
    """
    if (splits is None) == (split_size is None):
        raise UsageError(f"splits is {splits} and split_size is {split_size}; set exactly one of them")
    if split_size is not None:
        if num_samples < 1 or split_size < 1:
            raise UsageError(f"{num_samples} samples in splits of {split_size}; both must be at least 1")
        return np.append(np.arange(0, num_samples, split_size), num_samples)
    assert splits is not None
    if not 1 <= splits <= num_samples:
        raise UsageError(f"{splits} splits of {num_samples} samples; need at least 1 split and 1 sample in each")
    return np.arange(splits + 1) * num_samples // splits


class SplitScores:
    """The sums of an inception score (Salimans et al. 2016, arXiv:1606.03498), for samples in any order.

    bounds: int [S + 1], increasing. Split s has the samples bounds[s] … bounds[s + 1] − 1.
    """

    def __init__(self, num_classes: int, bounds: ArrayLike) -> None:
        self.bounds = np.asarray(bounds)
        if self.bounds.ndim != 1 or len(self.bounds) < 2 or (np.diff(self.bounds) < 1).any():
            raise UsageError(f"bounds {self.bounds.tolist()} must be at least two increasing sample indices")
        splits = len(self.bounds) - 1
        self.count = np.zeros(splits, np.int64)
        self.total = np.zeros((splits, num_classes))  # Σ_x p(y|x)
        self.negentropy = np.zeros(splits)  # Σ_x Σ_y p(y|x) log p(y|x)

    def update(self, index: ArrayLike, logits: ArrayLike) -> None:
        """Adds the logits [B, K] of the samples of index [B] in place. Add each sample once."""
        index = np.asarray(index)
        logits = feature_rows(logits, self.total.shape[1]).astype(np.float64)
        if index.shape != logits.shape[:1]:
            raise UsageError(f"index has shape {index.shape} for logits of shape {logits.shape}")
        if ((index < self.bounds[0]) | (index >= self.bounds[-1])).any():
            raise UsageError(f"a sample index is outside {self.bounds[0]} … {self.bounds[-1] - 1}")
        log_p = logits - logits.max(axis=1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        split = np.searchsorted(self.bounds, index, side="right") - 1
        for s in np.unique(split):
            members = split == s
            self.count[s] += members.sum()
            self.total[s] += p[members].sum(axis=0)
            self.negentropy[s] += (p * log_p)[members].sum()

    def score(self) -> tuple[float, float]:
        """Returns (mean, standard deviation) over the splits of exp(E_x KL(p(y|x) ‖ p(y))).

        Raises UsageError unless every split is complete.
        """
        for s, (count, size) in enumerate(zip(self.count, np.diff(self.bounds), strict=True)):
            if count != size:
                raise UsageError(f"split {s} has {count} samples instead of {size}")
        p_y = self.total / self.count[:, None]
        log_p_y = np.log(p_y, out=np.zeros_like(p_y), where=p_y > 0)  # 0 log 0 = 0
        scores = np.exp(self.negentropy / self.count - (p_y * log_p_y).sum(axis=1))
        return float(scores.mean()), float(scores.std())


def inception_score(logits: ArrayLike, *, splits: int = 10, split_size: int | None = None) -> tuple[float, float]:
    """Returns (mean, standard deviation) of the inception score over consecutive splits of logits [N, K].

    splits, split_size: see `split_bounds`; split_size takes precedence.
    """
    logits = feature_rows(logits)
    bounds = split_bounds(len(logits), splits if split_size is None else None, split_size)
    scores = SplitScores(logits.shape[1], bounds)
    for start, stop in itertools.pairwise(bounds):
        scores.update(np.arange(start, stop), logits[start:stop])
    return scores.score()


def cubic_mmd(x: ArrayLike, y: ArrayLike) -> float:
    """Returns the unbiased MMD² of x [M, D] and y [M, D] under the kernel (x·y / D + 1)³.

    Bińkowski et al. 2018, arXiv:1801.01401, eq. (4). M is at least 2. It can be negative: for equal distributions its
    expectation is 0.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    size, dim = x.shape
    xx, yy, xy = ((a @ b.T / dim + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (size * (size - 1))
    return float(within - 2 * xy.mean())


def kernel_subset(reference: Shaped[np.ndarray, "n d"], b: int, size: int) -> Shaped[np.ndarray, "size d"]:
    """Returns the subset of the reference for the b-th subset of generated samples. Starts over after the last one."""
    start = b % (len(reference) // size) * size
    return reference[start : start + size]


def kernel_distance(reference: ArrayLike, generated: ArrayLike, *, subset_size: int = 1000) -> tuple[float, float]:
    """Returns (mean, standard deviation) over subsets of KID's MMD² (Bińkowski et al. 2018).

    The subsets are disjoint and consecutive; subset b is compared with `kernel_subset`, and an incomplete last one is
    left out. reference: [R, D]. generated: [N, D]. subset_size: at least 2; reduced to R or N if these are smaller.
    Samples with labels 0, 1, …, K − 1, 0, 1, … bias it slightly, since such subsets vary less than random ones.
    """
    reference = feature_rows(reference)
    generated = feature_rows(generated, reference.shape[1])
    size = min(subset_size, len(reference), len(generated))
    if size < 2:
        given = f"{size} of {len(reference)} reference and {len(generated)} generated samples"
        raise UsageError(f"subsets have {given}; need at least 2 in each")
    blocks = [generated[start : start + size] for start in range(0, len(generated) - size + 1, size)]
    distances = [cubic_mmd(kernel_subset(reference, b, size), block) for b, block in enumerate(blocks)]
    return float(np.mean(distances)), float(np.std(distances))
