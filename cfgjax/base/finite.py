"""Checks that weights and samples are finite. A NaN in either would silently become a black image."""

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int, PyTree, Real

from cfgjax.base.errors import UsageError


def check_weights(params: PyTree[ArrayLike], source: str) -> None:
    """Raises UsageError with the first array of a tree that has NaN or infinite values. source: the tree's origin."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if bad := count_not_finite(leaf):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UsageError(f"{source}: {name} has {bad:,} of {np.size(leaf):,} values that are not finite")


def count_not_finite(array: ArrayLike) -> int | np.integer:
    """Returns the number of NaN and infinite values in an array."""
    return np.size(array) - np.count_nonzero(np.isfinite(array))


def check_finite_samples(
    samples: Float[np.ndarray, "n ..."],
    index: Int[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    weights: Real[np.ndarray, " n"],
) -> None:
    """Raises ArithmeticError with the first of samples [N, …] that has a non-finite value.

    index, labels, weights: [N], for the error.
    """
    finite = np.isfinite(samples.reshape(len(samples), -1 if len(samples) else 0)).all(axis=1)
    if not finite.all():
        i = int(np.flatnonzero(~finite)[0])
        which = f"sample {index[i]} at w = {weights[i]:g} has a value that is not finite"
        raise ArithmeticError(f"{which}; its label is {labels[i]}")
