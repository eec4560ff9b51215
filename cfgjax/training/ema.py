"""Exponential moving averages of the parameters, at several rates at once."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

Averages = dict[str, PyTree]  # {str(rate): averaged parameters}


def init(params: PyTree, rates: Sequence[float]) -> Averages:
    """Returns a copy of params for each rate. Since they start as copies and not at zero, no bias is corrected."""
    return {str(float(rate)): jax.tree.map(jnp.copy, params) for rate in rates}


def update(ema: Averages, params: PyTree, step: Int[Array, ""] | int, *, warmup: bool) -> Averages:
    """Returns r e + (1 − r) params for the average e of each rate r; with warmup, r is at most (1 + n) / (10 + n).

    step: n, the optimizer steps taken before this one, including skipped ones.
    """

    def average(rate: float, old: PyTree) -> PyTree:
        r = jnp.minimum(rate, (1.0 + step) / (10.0 + step)) if warmup else rate
        return jax.tree.map(lambda e, p: e + (1 - r) * (p - e), old, params)

    return {rate: average(float(rate), old) for rate, old in ema.items()}
