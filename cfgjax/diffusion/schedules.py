"""Noise levels: u → λ for training, λ grids for sampling, λ as a network sees it."""

import math

import jax.numpy as jnp
import numpy as np


def cosine(u, logsnr_min=-20.0, logsnr_max=20.0, *, xp=jnp):
    """λ = −2 log tan(a u + b), the truncated cosine schedule of CFG section 2.

    u: any shape, in [0, 1]; u = 0 gives logsnr_max, u = 1 gives logsnr_min.
    xp: the array module, `jax.numpy` or `numpy` (for float64 on the host).

    The tangent is written as sin(a u + b) / sin(a (1−u) + b̄) with b̄ = arctan(e^{λmin/2}) = π/2 − a − b, so that
    both ends keep their digits in float32.
    """
    b = math.atan(math.exp(-logsnr_max / 2))
    b_bar = math.atan(math.exp(logsnr_min / 2))
    a = math.pi / 2 - b - b_bar
    u = xp.asarray(u)
    return 2.0 * (xp.log(xp.sin(a * (1.0 - u) + b_bar)) - xp.log(xp.sin(a * u + b)))


def uniform(u, logsnr_min=-20.0, logsnr_max=20.0, *, xp=jnp):
    """λ = λmax + u (λmin − λmax): for u ~ U[0, 1] this is λ ~ U(λmin, λmax), the alternative CFG names."""
    return logsnr_max + xp.asarray(u) * (logsnr_min - logsnr_max)


SCHEDULES = {"cosine": cosine, "uniform": uniform}


MAX_STEPS = 1_000_000
"""Largest number of levels of a grid, a thousand times the usual one. More would exhaust the memory, and neighbouring λ
would be equal in float32."""


def logsnr_grid(num_steps, schedule="cosine", logsnr_min=-20.0, logsnr_max=20.0):
    """λ_1 = λmin < … < λ_T = λmax for a sampler of T = num_steps network calls, CFG algorithm 2.

    Returns float64 numpy [num_steps], increasing: the schedule at equally spaced u, both ends included.
    Raises ValueError for fewer than two steps, an unknown schedule, or bounds out of order.
    """
    if num_steps > MAX_STEPS:
        raise ValueError(f"num_steps is {num_steps}; need at most {MAX_STEPS}")
    if num_steps < 2:
        raise ValueError(f"num_steps is {num_steps}; a sampling grid has both ends and so at least 2 steps")
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}; known: {', '.join(SCHEDULES)}")
    if not logsnr_min < logsnr_max:
        raise ValueError(f"logsnr_min {logsnr_min} is not below logsnr_max {logsnr_max}")
    return SCHEDULES[schedule](np.linspace(1.0, 0.0, num_steps), logsnr_min, logsnr_max, xp=np)


def network_time(logsnr):
    """1000 · arctan(e^{−λ/2}) / (π/2): λ as a network sees it, from 0 (clean) to 1000 (noise), never an integer."""
    return 1000.0 * jnp.arctan(jnp.exp(-0.5 * logsnr)) / (math.pi / 2)
