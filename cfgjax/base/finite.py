"""Checks that weights and samples are finite. A NaN in either would silently become a black picture."""

import jax
import numpy as np

from cfgjax.base.errors import UsageError


def check_weights(params, source):
    """Raises UsageError naming the first array of a tree with NaN or infinite values. source: its origin."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if bad := count_not_finite(leaf):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UsageError(f"{source}: {name} has {bad:,} of {np.size(leaf):,} values that are not finite")


def count_not_finite(array):
    """Returns the number of NaN or infinite values of an array."""
    return np.size(array) - np.count_nonzero(np.isfinite(array))


def check_samples(samples, index, labels, weights):
    """Raises ArithmeticError naming the first of samples [N, …] with a value that is not finite.

    index, labels, weights: [N], of these samples, for the error.
    """
    finite = np.isfinite(samples.reshape(len(samples), -1 if len(samples) else 0)).all(axis=1)
    if not finite.all():
        i = int(np.flatnonzero(~finite)[0])
        which = f"sample {index[i]} at w = {weights[i]:g} has a value that is not finite"
        raise ArithmeticError(f"{which}; its label is {labels[i]}")
