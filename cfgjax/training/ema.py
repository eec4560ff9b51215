"""Averages of the parameters: exponential ones at several rates, and power-function ones of several widths.

The weight of the parameters of step t is 1 − r for a rate r, and 1 − (1 − 1/t)^(γ+1) for a width, 2312.02696 eq. (3).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from cfgjax.runs.power_averages import exponent
from cfgjax.runs.training_settings import WIDTH_NAME

Averages = dict[str, PyTree]  # {name: averaged parameters}


def init(params: PyTree, names: Sequence[str]) -> Averages:
    """Returns a copy of params for each average. Since they start as copies and not at zero, no bias is corrected.

    names: of `EMASettings`, "0.999" of a rate and "width_0.05" of a width.
    """
    return {name: jax.tree.map(jnp.copy, params) for name in names}


def update(ema: Averages, params: PyTree, step: Int[Array, ""] | int, *, warmup: bool) -> Averages:
    """Returns e + share (p − e) for each average e of the parameters p, with its `share`.

    step: n, the optimizer steps taken before this one, including skipped ones.
    """

    def average(name: str, old: PyTree) -> PyTree:
        of_new = share(name, step, warmup=warmup)
        return jax.tree.map(lambda e, p: e + of_new * (p - e), old, params)

    return {name: average(name, old) for name, old in ema.items()}


def share(name: str, step: Int[Array, ""] | int, *, warmup: bool) -> Float[Array, ""] | Any:
    """Returns the weight of the parameters of step n + 1 in an average, where `step` is n.

    It is 1 − r for a rate r, which with warmup is at most (1 + n) / (10 + n), and 1 − (1 − 1/t)^(γ+1) with t = n + 1
    for a width. The latter is 1 at the first step, and expm1 keeps its digits where t is large.
    """
    if name.startswith(WIDTH_NAME):
        gamma = exponent(float(name.removeprefix(WIDTH_NAME)))
        return -jnp.expm1((gamma + 1) * jnp.log1p(-1 / (jnp.asarray(step, jnp.float32) + 1)))
    rate = float(name)
    return 1 - (jnp.minimum(rate, (1.0 + step) / (10.0 + step)) if warmup else rate)
