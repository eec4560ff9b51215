"""Heun's method and EDM's stochastic sampler; Karras et al. 2022 (arXiv:2206.00364)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cfgjax.diffusion.process import alpha_sigma
from cfgjax.diffusion.samplers.ddim import ddim_step
from cfgjax.diffusion.samplers.driver import Level
from cfgjax.diffusion.samplers.optional_noise import OptionalNoise, optional_noise_tree
from cfgjax.diffusion.specs import number

MAX_CHURN = math.sqrt(2) - 1  # EDM algorithm 2: largest γ


@optional_noise_tree
@dataclass(frozen=True, repr=False)
class heun(OptionalNoise):
    """Heun's method of order 2 on dy/dς = ε̃, y = z/α, ς = σ/α, EDM algorithm 1, with the churn of algorithm 2.

    A step is that of DDIM (Euler) to λ', corrected by a second evaluation there; the last one is x̃: 2T − 1 evaluations.
    The method needs steps that are short in ς. The cosine schedule begins with one from ς = 22026 to about 0.6 T, so
    that the result is far off; take grid="edm()", which EDM chose for this method.
    Churn adds noise before a step: ς̂ = ς (1 + γ), ŷ = y + √(ς̂² − ς²) s_noise n, with γ = min(s_churn/T, √2 − 1) if
    s_min ≤ ς ≤ s_max, and the step starts there. ς̂ is at most ς of the first level, the noisiest that is asked for, so
    that the first level, whose z is noise alone, is not churned. A trajectory has z before and x̃ after the churn.

    s_churn: at least 0. The Python number 0 is part of the program, which then draws no noise, and the other numbers
    have no effect. EDM's values for ImageNet 64: s_churn=40, s_min=0.05, s_max=50, s_noise=1.003. A network of discrete
    time sees ς̂ at an interpolated timestep. If x̃ is clipped but not ε̃ ("x_only"), the correction is that of ε̃.
    """

    s_churn: Any = 0.0
    s_min: Any = 0.0
    s_max: Any = math.inf
    s_noise: Any = 1.0

    def __post_init__(self) -> None:
        for name in ("s_churn", "s_min", "s_max", "s_noise"):
            object.__setattr__(self, name, number(name, getattr(self, name), 0))

    def init(self, z: Float[Array, "b ..."]) -> Float[Array, ""]:
        """Returns λ of the first level, which its step replaces."""
        return jnp.zeros((), z.dtype)

    def evaluations(self, num_steps: int) -> int:
        return 2 * num_steps - 1

    def evaluated_levels(self, logsnrs: Float[np.ndarray, " t"]) -> Float[np.ndarray, " n"]:
        """Returns λ̂_1, λ_2, λ̂_2, λ_3, … λ̂_T, of which λ̂ = λ without churn."""
        logsnrs = np.asarray(logsnrs)
        found = np.repeat(logsnrs, 2)[1:]
        if self.draws_noise:
            found[::2] = self._churned(logsnrs, logsnrs[0], len(logsnrs))
        return found

    def step(
        self,
        denoise: Callable,
        z: Float[Array, "b ..."],
        state: Float[Array, ""],
        level: Level,
        noise: Float[Array, "b ..."] | None,
    ) -> tuple[Float[Array, "b ..."], Float[Array, ""]]:
        """Returns z' = z₁ + ½ (σ' − σ̂ α'/α̂)(ε̃' − ε̃), with z₁ the DDIM step from λ̂ to λ' and ε̃' = ε̃(z₁, λ')."""
        first = jnp.where(level.step == 0, level.logsnr, state)
        logsnr = level.logsnr
        if noise is not None:
            logsnr = self._churned(level.logsnr, first, level.num_steps)
            z = self._noisier(z, level.logsnr, logsnr, noise)
        x, eps, _ = denoise(z, logsnr)
        z_euler = ddim_step(x, eps, logsnr, level.logsnr_next)
        eps_next = jax.lax.cond(level.last, lambda: eps, lambda: denoise(z_euler, level.logsnr_next).eps)
        (alpha, sigma), (alpha_next, sigma_next) = alpha_sigma(logsnr), alpha_sigma(level.logsnr_next)
        return z_euler + 0.5 * (sigma_next - sigma * alpha_next / alpha) * (eps_next - eps), first

    def _churned(self, logsnr: Any, logsnr_first: Any, num_steps: Any) -> Any:
        """Returns λ̂ = λ − 2 log(1 + γ), at least λ of the first level."""
        xp = jnp if isinstance(logsnr, jax.Array) else np
        noise_to_signal = xp.exp(-0.5 * logsnr)
        is_within = (noise_to_signal >= self.s_min) & (noise_to_signal <= self.s_max)
        gamma = xp.where(is_within, xp.minimum(self.s_churn / num_steps, MAX_CHURN), 0.0)
        return xp.maximum(logsnr - 2 * xp.log1p(gamma), logsnr_first).astype(logsnr.dtype)

    def _noisier(
        self,
        z: Float[Array, "b ..."],
        logsnr: Float[Array, ""],
        logsnr_hat: Float[Array, ""],
        noise: Float[Array, "b ..."],
    ) -> Float[Array, "b ..."]:
        """Returns ẑ = (α̂/α) z + √(σ̂² − (α̂σ/α)²) s_noise n at λ̂ ≤ λ."""
        (alpha, _), (alpha_hat, sigma_hat) = alpha_sigma(logsnr), alpha_sigma(logsnr_hat)
        added = sigma_hat * jnp.sqrt(-jnp.expm1(logsnr_hat - logsnr))  # (α̂σ/α)² = σ̂² e^(λ̂−λ)
        return (alpha_hat / alpha) * z + added * self.s_noise * noise
