"""Noise levels in continuous λ: u → λ for training, λ grids for sampling, λ as a network sees it.

A schedule is a function (u, logsnr_min, logsnr_max, *, xp) → λ that decreases from logsnr_max at u = 0 to logsnr_min
at u = 1: the quantile function of the levels of training, and at equally spaced u the grid of sampling. xp is the array
module to compute with: `jax.numpy`, or `numpy` for float64 on the host.
CFG = Ho & Salimans 2022 (arXiv:2207.12598).
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, Float64

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.process import RealLike
from cfgjax.diffusion.specs import Spec, finite_number, parse, positive_number


def cosine(
    u: Float[RealLike, "*shape"], logsnr_min: float = -20.0, logsnr_max: float = 20.0, *, xp: ModuleType = jnp
) -> Float[Any, "*shape"]:
    """Returns λ = −2 log tan(a u + b), the truncated cosine schedule of CFG section 2.

    u: in [0, 1]. Both ends keep their digits in float32, because the tangent is written as
    sin(a u + b) / sin(a (1−u) + b̄) with b̄ = arctan(e^(λmin/2)) = π/2 − a − b.
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


@dataclass(frozen=True, repr=False)
class normal(Spec):
    """λ ~ N(mean, std²), truncated to [λmin, λmax]: the quantile function, from λmax at u = 0 to λmin at u = 1.

    EDM (arXiv:2206.00364) table 1 draws log ς = −λ/2 from N(−1.2, 1.2²), so that λ ~ N(2.4, 2.4²), the default; EDM2
    (arXiv:2312.02696) has N(0.8, 2²). Both are for data of standard deviation 0.5: for another one, d, the same
    signal-to-noise ratios need the mean plus 2 log(0.5/d).
    Raises UsageError if less than MIN_MASS of the distribution lies between the bounds.
    """

    mean: Any = 2.4
    std: Any = 2.4

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", finite_number("mean", self.mean))
        object.__setattr__(self, "std", positive_number("std", self.std))

    def __call__(
        self,
        u: Float[RealLike, "*shape"],
        logsnr_min: float = -20.0,
        logsnr_max: float = 20.0,
        *,
        xp: ModuleType = jnp,
    ) -> Float[Any, "*shape"]:
        mean, std = self.of_logsnr
        return truncated_normal(u, mean, std, logsnr_min, logsnr_max, xp=xp, name=repr(self))

    @property
    def of_logsnr(self) -> tuple[Any, Any]:
        """Returns (mean, standard deviation) of λ without the bounds."""
        return self.mean, self.std


@dataclass(frozen=True, repr=False)
class logit_normal(normal):
    """logit t ~ N(mean, std²) for the flow's time t = σ/(α+σ), truncated to [λmin, λmax]; arXiv:2403.03206, recalled.

    As logit t = log(σ/α) = −λ/2, it is the same as `normal(mean=−2 mean, std=2 std)`.
    """

    mean: Any = 0.0
    std: Any = 1.0

    @property
    def of_logsnr(self) -> tuple[Any, Any]:
        return -2 * self.mean, 2 * self.std


MIN_MASS = 0.01  # of a distribution between the bounds; less is a mistake in the mean or the bounds


def truncated_normal(
    u: Float[RealLike, "*shape"],
    mean: float,
    std: float,
    logsnr_min: float,
    logsnr_max: float,
    *,
    xp: ModuleType,
    name: str,
) -> Float[Any, "*shape"]:
    """Returns the quantile 1 − u of N(mean, std²) truncated to [logsnr_min, logsnr_max].

    Each half is computed from the mass of its own tail, so that both ends keep their digits in float32.
    name: of the distribution, for the error if less than MIN_MASS of it lies between the bounds.
    """
    normal_cdf = statistics.NormalDist().cdf
    below = normal_cdf((logsnr_min - mean) / std)
    above = normal_cdf((mean - logsnr_max) / std)
    between = 1 - below - above
    if between < MIN_MASS:
        bounds = f"logsnr_min {logsnr_min:g} and logsnr_max {logsnr_max:g}"
        raise UsageError(f"{name} has only {max(between, 0):.1g} of its mass between {bounds}")
    u = xp.asarray(u)
    lower, upper = below + (1.0 - u) * between, above + u * between  # the masses on both sides, with sum 1
    is_lower = lower < upper
    tail = inverse_cdf(xp.where(is_lower, lower, upper), xp)
    return xp.clip(mean + std * xp.where(is_lower, tail, -tail), logsnr_min, logsnr_max)


def inverse_cdf(p: Float[Any, "*shape"], xp: ModuleType) -> Float[Any, "*shape"]:
    """Returns Φ⁻¹(p) for p in [0, 1); −∞ at 0. In numpy it has float64's digits, from the standard library."""
    if xp is jnp:
        return ndtri(p)
    exact = np.vectorize(statistics.NormalDist().inv_cdf, otypes=[np.float64])
    return np.where(p > 0, exact(np.where(p > 0, p, 0.5)), -np.inf)


SCHEDULES: dict[str, Any] = {"cosine": cosine, "uniform": uniform, "normal": normal, "logit_normal": logit_normal}
"""Schedules, or dataclasses whose fields are the arguments of one."""


def parse_schedule(text: str, what: str = "schedule") -> Callable:
    """Returns the schedule that text names, such as "cosine" or "normal(mean=0.8, std=2)".

    what: for messages. Raises UsageError.
    """
    return parse(text, SCHEDULES, what)


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
    quantile = parse_schedule(schedule)
    if not logsnr_min < logsnr_max:
        raise ValueError(f"logsnr_min {logsnr_min} is not below logsnr_max {logsnr_max}")
    grid = quantile(np.linspace(1.0, 0.0, int(num_steps)), logsnr_min, logsnr_max, xp=np)
    if not np.all(np.diff(grid) > 0):
        raise ValueError(f"schedule {schedule!r} does not decrease from logsnr_max at u = 0 to logsnr_min at u = 1")
    return grid


def network_time(logsnr: Float[RealLike, "*shape"]) -> Float[Array, "*shape"]:
    """Returns 1000 · arctan(e^(−λ/2)) / (π/2): λ as a network sees it, from 0 (clean) to 1000 (noise), not rounded."""
    return 1000.0 * jnp.arctan(jnp.exp(-0.5 * logsnr)) / (math.pi / 2)
