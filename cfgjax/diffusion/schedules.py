"""Noise levels in continuous λ: u → λ for training, λ grids for sampling, λ as a network sees it.

A schedule is a function (u, logsnr_min, logsnr_max, *, xp) → λ that decreases from logsnr_max at u = 0 to logsnr_min
at u = 1. xp is the array module to compute with: `jax.numpy`, or `numpy` for float64 on the host.
CFG = Ho & Salimans 2022 (arXiv:2207.12598).
"""

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from cfgjax.diffusion.process import RealLike


def cosine(
    u: Float[RealLike, "*shape"], logsnr_min: float = -20.0, logsnr_max: float = 20.0, *, xp: ModuleType = jnp
) -> Float[Any, "*shape"]:
    """Returns λ = −2 log tan(a u + b), the truncated cosine schedule of CFG section 2.

    u: in [0, 1]. Both ends keep their digits in float32, because the tangent is written as
    sin(a u + b) / sin(a (1−u) + b̄) with b̄ = arctan(e^{λmin/2}) = π/2 − a − b.
    """
    b = math.atan(math.exp(-logsnr_max / 2))
    b_bar = math.atan(math.exp(logsnr_min / 2))
    a = math.pi / 2 - b - b_bar
    u = xp.asarray(u)
    return 2.0 * (xp.log(xp.sin(a * (1.0 - u) + b_bar)) - xp.log(xp.sin(a * u + b)))


def uniform(
    u: Float[RealLike, "*shape"], logsnr_min: float = -20.0, logsnr_max: float = 20.0, *, xp: ModuleType = jnp
) -> Float[Any, "*shape"]:
    """Returns λ = λmax + u (λmin − λmax), so that u ~ U[0, 1] gives λ ~ U(λmin, λmax); CFG section 2 names it."""
    return logsnr_max + xp.asarray(u) * (logsnr_min - logsnr_max)


SCHEDULES: dict[str, Callable] = {"cosine": cosine, "uniform": uniform}

MAX_STEPS = 1_000_000
"""Largest number of levels of a grid, a thousand times the usual one. More would exhaust the memory, and neighbouring λ
would be equal in float32."""


def logsnr_grid(
    num_steps: int | np.integer, schedule: str = "cosine", logsnr_min: float = -20.0, logsnr_max: float = 20.0
) -> Float64[np.ndarray, " num_steps"]:
    """Returns λ_1 = λmin < … < λ_T = λmax for a sampler of T = num_steps levels, CFG algorithm 2.

    These are the values of the schedule at equally spaced u, both ends included.
    Raises ValueError for fewer than two steps, an unknown schedule, bounds out of order, or a schedule that does not
    decrease in u.
    """
    if num_steps > MAX_STEPS:
        raise ValueError(f"num_steps is {num_steps}; need at most {MAX_STEPS}")
    if num_steps < 2:
        raise ValueError(f"num_steps is {num_steps}; a sampling grid has both ends and so at least 2 steps")
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}; known: {', '.join(SCHEDULES)}")
    if not logsnr_min < logsnr_max:
        raise ValueError(f"logsnr_min {logsnr_min} is not below logsnr_max {logsnr_max}")
    grid = SCHEDULES[schedule](np.linspace(1.0, 0.0, int(num_steps)), logsnr_min, logsnr_max, xp=np)
    if not np.all(np.diff(grid) > 0):
        raise ValueError(f"schedule {schedule!r} does not decrease from logsnr_max at u = 0 to logsnr_min at u = 1")
    return grid


def network_time(logsnr: Float[RealLike, "*shape"]) -> Float[Array, "*shape"]:
    """Returns 1000 · arctan(e^{−λ/2}) / (π/2): λ as a network sees it, from 0 (clean) to 1000 (noise), not rounded."""
    return 1000.0 * jnp.arctan(jnp.exp(-0.5 * logsnr)) / (math.pi / 2)
