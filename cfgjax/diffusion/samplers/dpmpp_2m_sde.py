"""DPM-Solver++(2M) of the reverse stochastic differential equation, as in k-diffusion's `sample_dpmpp_2m_sde`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from cfgjax.diffusion.process import alpha_sigma
from cfgjax.diffusion.samplers.dpmpp_2m import LevelBefore, dpmpp_2m, extrapolated, no_history
from cfgjax.diffusion.samplers.driver import Level
from cfgjax.diffusion.samplers.optional_noise import OptionalNoise, optional_noise_tree
from cfgjax.diffusion.specs import number


@optional_noise_tree
@dataclass(frozen=True, repr=False)
class dpmpp_2m_sde(OptionalNoise):
    """DPM-Solver++(2M) SDE: z' = (σ'/σ) e^(−ηh) z + α' (1 − e^(−(1+η)h)) D + σ' √(1 − e^(−2ηh)) n.

    h and D are those of `dpmpp_2m`, which this is at η = 0. At η = 1 it follows the same SDE as `ancestral(v=0)`, whose
    step is its first one. T evaluations.

    eta: in [0, 1]. The Python number 0 is part of the program, which then draws no noise; any other is traced.
    """

    eta: Any = 1.0

    uses_eps = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta", number("eta", self.eta, 0, 1))

    def init(self, z: Float[Array, "b ..."]) -> LevelBefore:
        return no_history(z)

    def evaluations(self, num_steps: int) -> int:
        return num_steps

    def step(
        self,
        denoise: Callable,
        z: Float[Array, "b ..."],
        state: LevelBefore,
        level: Level,
        noise: Float[Array, "b ..."] | None,
    ) -> tuple[Float[Array, "b ..."], LevelBefore]:
        """Returns z' = α' x̃ + σ' (e^(−ηh) ε̃ + √(1 − e^(−2ηh)) n) + α' (1 − e^(−(1+η)h)) (D − x̃)."""
        if noise is None:
            return dpmpp_2m().step(denoise, z, state, level, noise)
        x, eps, _ = denoise(z, level.logsnr)
        alpha_next, sigma_next = alpha_sigma(level.logsnr_next)
        minus_h = 0.5 * (level.logsnr - level.logsnr_next)
        fresh = jnp.exp(self.eta * minus_h) * eps + jnp.sqrt(-jnp.expm1(2 * self.eta * minus_h)) * noise
        weight = -alpha_next * jnp.expm1((1 + self.eta) * minus_h)
        z_next = alpha_next * x + sigma_next * fresh + weight * (extrapolated(x, state, level) - x)
        return z_next, LevelBefore(x, level.logsnr)
