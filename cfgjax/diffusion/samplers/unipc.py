"""UniPC of order 2; Zhao et al. 2023 (arXiv:2302.04867)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from cfgjax.diffusion.process import alpha_sigma
from cfgjax.diffusion.samplers.dpmpp_2m import LevelBefore, extrapolated, no_history
from cfgjax.diffusion.samplers.driver import Level
from cfgjax.diffusion.specs import Spec, tree

SERIES_TERMS = 17  # of φ_k(x) for |x| < 1: the next one is below 2e-16


class TwoLevels(NamedTuple):
    """The corrected z of the level before, and what is remembered of it and of the level before that."""

    z: Float[Array, "b ..."]
    last: LevelBefore
    earlier: LevelBefore


@tree
@dataclass(frozen=True, repr=False)
class unipc(Spec):
    """UniPC-2 with B(h) = e^(−h) − 1 ("bh2") for x̃: a predictor of order 2 and a corrector that makes it order 3.

    The predictor is the step of `dpmpp_2m`, which is UniP-2. The corrector repeats the previous step, from the x̃ of its
    two ends and of the level before. x̃ is not evaluated again at the corrected z: T evaluations.
    Where α x̃ + σ ε̃ is not z (CFG++, clipping "x_only"), the difference is added to the corrected z.
    """

    draws_noise = False
    uses_eps = True

    def init(self, z: Float[Array, "b ..."]) -> TwoLevels:
        return TwoLevels(jnp.zeros_like(z), no_history(z), no_history(z))

    def evaluations(self, num_steps: int) -> int:
        return num_steps

    def step(
        self, denoise: Callable, z: Float[Array, "b ..."], state: TwoLevels, level: Level, noise: None
    ) -> tuple[Float[Array, "b ..."], TwoLevels]:
        """Returns z' = (σ'/σ) z_c − α' (e^(−h) − 1) D, with z_c the corrected z and D of `extrapolated`."""
        x, eps, _ = denoise(z, level.logsnr)
        alpha, sigma = alpha_sigma(level.logsnr)
        z_corrected = corrected(z, x, state, level) + (alpha * x + sigma * eps - z)
        middle = extrapolated(x, state.last, level)
        z_next = exponential_step(z_corrected, middle, level.logsnr, level.logsnr_next)
        return z_next, TwoLevels(z_corrected, LevelBefore(x, level.logsnr), state.last)


def exponential_step(
    z: Float[Array, "b ..."], x: Float[Array, "b ..."], logsnr: Float[Array, ""], logsnr_next: Float[Array, ""]
) -> Float[Array, "b ..."]:
    """Returns z' = (σ'/σ) z − α' (e^(−h) − 1) x, h = (λ'−λ)/2: the exact solution for constant x̃ = x."""
    (_, sigma), (alpha_next, sigma_next) = alpha_sigma(logsnr), alpha_sigma(logsnr_next)
    return (sigma_next / sigma) * z - alpha_next * jnp.expm1(0.5 * (logsnr - logsnr_next)) * x


def corrected(
    z: Float[Array, "b ..."], x: Float[Array, "b ..."], state: TwoLevels, level: Level
) -> Float[Array, "b ..."]:
    """Returns z at λ, corrected by x̃ at λ: (σ/σ₀) z₀ − α (e^(−h) − 1) [m₀ + ρ₁ D₁ + ρ₂ (x̃ − m₀)], UniC-2.

    z₀, m₀: z and x̃ of the level before. D₁ = (m₁ − m₀)/r, m₁: x̃ of the one before it, r = (λ₁ − λ₀)/(λ − λ₀) < 0.
    ρ₁ + ρ₂ = φ₂/φ₁ and r ρ₁ + ρ₂ = 2 φ₃/φ₁ at −h; of the first step UniC-1, ρ₁ = 0 and ρ₂ = ½. At the first level
    nothing is corrected.
    """
    # λ₀ of the first level and λ₁ of the first two are placeholders
    logsnr_0 = jnp.where(level.step == 0, level.logsnr - 1, state.last.logsnr)
    logsnr_1 = jnp.where(level.step <= 1, logsnr_0 - 1, state.earlier.logsnr)
    minus_h, r = 0.5 * (logsnr_0 - level.logsnr), (logsnr_1 - logsnr_0) / (level.logsnr - logsnr_0)
    first, second = phi(2, minus_h) / phi(1, minus_h), 2 * phi(3, minus_h) / phi(1, minus_h)
    rho_1 = jnp.where(level.step <= 1, 0.0, (first - second) / (1 - r))
    rho_2 = jnp.where(level.step <= 1, 0.5, first - rho_1)
    x_0 = state.last.x
    middle = x_0 + (rho_1 / r) * (state.earlier.x - x_0) + rho_2 * (x - x_0)
    return jnp.where(level.step == 0, z, exponential_step(state.z, middle, logsnr_0, level.logsnr))


def phi(k: int, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns φ_k(x) = Σ_n x^n / (n+k)!: (e^x − 1)/x at k = 1, (φ_{k−1}(x) − 1/(k−1)!)/x above.

    The recursion alone would lose all digits of φ₃ in float32 at x = 0.01, a step of a fine grid.
    """
    large = jnp.where(jnp.abs(x) < 1, 1.0, x)
    by_recursion = jnp.expm1(large) / large
    for order in range(2, k + 1):
        by_recursion = (by_recursion - 1 / math.factorial(order - 1)) / large
    by_series = jnp.zeros_like(x)
    for n in reversed(range(SERIES_TERMS)):
        by_series = by_series * x + 1 / math.factorial(n + k)
    return jnp.where(jnp.abs(x) < 1, by_series, by_recursion)
