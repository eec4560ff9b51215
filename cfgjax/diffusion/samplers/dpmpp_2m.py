"""DPM-Solver++(2M); Lu et al. 2022 (arXiv:2211.01095)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from cfgjax.diffusion.process import alpha_sigma
from cfgjax.diffusion.samplers.ddim import ddim_step
from cfgjax.diffusion.samplers.driver import Level
from cfgjax.diffusion.specs import Spec, tree

MAX_STEP_RATIO = 2.0  # of the lengths of two steps in λ, for order 2


class LevelBefore(NamedTuple):
    """x̃ of the level before, and its λ."""

    x: Float[Array, "b ..."]
    logsnr: Float[Array, ""]


def no_history(z: Float[Array, "b ..."]) -> LevelBefore:
    """Returns the `LevelBefore` before the first level, which is never read."""
    return LevelBefore(jnp.zeros_like(z), jnp.zeros((), z.dtype))


def extrapolated(x: Float[Array, "b ..."], history: LevelBefore, level: Level) -> Float[Array, "b ..."]:
    """Returns D = x̃ + (x̃ − x̃_prev)/(2r), r = (λ − λ_prev)/(λ' − λ): x̃ continued to the middle of the step.

    D = x̃ at the first level, and in a step more than MAX_STEP_RATIO times as long as the one before, such as the last
    one of the cosine schedule, where x̃ would be continued far beyond its range. diffusers does the same in its last
    steps (`lower_order_final`).
    """
    is_first = level.step == 0
    before = jnp.where(is_first, level.logsnr - 1, history.logsnr)  # of the first level a placeholder
    ratio = (level.logsnr_next - level.logsnr) / (level.logsnr - before)
    return x + jnp.where(is_first | (ratio > MAX_STEP_RATIO), 0, 0.5 * ratio) * (x - history.x)


@tree
@dataclass(frozen=True, repr=False)
class dpmpp_2m(Spec):
    """DPM-Solver++(2M) of order 2, algorithm 2: z' = (σ'/σ) z − α' (e^(−h) − 1) D, h = (λ'−λ)/2, D of `extrapolated`.

    The first step is DDIM's, and so is one more than twice as long as the one before: those at the ends of the cosine
    schedule. T evaluations; x̃ of the level before is the state. If a rule (CFG++) or clipping ("x_only") makes x̃ and
    ε̃ that do not add up to z, the step starts from α x̃ + σ ε̃ in place of z, as that of DDIM does.
    """

    draws_noise = False
    uses_eps = True

    def init(self, z: Float[Array, "b ..."]) -> LevelBefore:
        return no_history(z)

    def evaluations(self, num_steps: int) -> int:
        return num_steps

    def step(
        self, denoise: Callable, z: Float[Array, "b ..."], state: LevelBefore, level: Level, noise: None
    ) -> tuple[Float[Array, "b ..."], LevelBefore]:
        """Returns z' = α' x̃ + σ' ε̃ + α' (1 − e^(−h)) (D − x̃)."""
        x, eps, _ = denoise(z, level.logsnr)
        alpha_next, _ = alpha_sigma(level.logsnr_next)
        weight = -alpha_next * jnp.expm1(0.5 * (level.logsnr - level.logsnr_next))
        z_next = ddim_step(x, eps, level.logsnr, level.logsnr_next) + weight * (extrapolated(x, state, level) - x)
        return z_next, LevelBefore(x, level.logsnr)
