"""DDIM (Song et al. 2021, arXiv:2010.02502) in λ, and its encoder."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from cfgjax.diffusion.process import RealLike, alpha_sigma, broadcast_left
from cfgjax.diffusion.samplers.driver import Level, run_sampler, steps_between
from cfgjax.diffusion.samplers.optional_noise import OptionalNoise, is_zero, optional_noise_tree
from cfgjax.diffusion.specs import number


@optional_noise_tree
@dataclass(frozen=True, repr=False)
class ddim(OptionalNoise):
    """DDIM, eq. (12): deterministic at η = 0, `ancestral(v=0)` at η = 1.

    At η = 0 this is the Euler method of the probability flow, in EDM's variables y = z/α and ς = σ/α, and equally that
    of the flow z_f = z/(α+σ) in t = σ/(α+σ), whose velocity is ε − x: a step with constant x̃ and ε̃ has no error in
    either. Euler in flow time is therefore no sampler of its own; take `ddim()` on the grid `flow(shift=…)`.

    eta: in [0, 1]. The Python number 0 is part of the program, which then draws no noise; any other is traced.
    """

    eta: Any = 0.0

    uses_eps = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta", number("eta", self.eta, 0, 1))

    def init(self, z: Float[Array, "b ..."]) -> tuple:
        return ()

    def evaluations(self, num_steps: int) -> int:
        return num_steps

    def step(
        self,
        denoise: Callable,
        z: Float[Array, "b ..."],
        state: tuple,
        level: Level,
        noise: Float[Array, "b ..."] | None,
    ) -> tuple[Float[Array, "b ..."], tuple]:
        """Returns z' of `ddim_step`."""
        x, eps, _ = denoise(z, level.logsnr)
        if noise is None:
            return ddim_step(x, eps, level.logsnr, level.logsnr_next), state
        return ddim_step(x, eps, level.logsnr, level.logsnr_next, noise, self.eta), state


def ddim_step(
    x: Float[RealLike, "*shape"],
    eps: Float[RealLike, "*shape"],
    logsnr: Float[RealLike, "..."],
    logsnr_next: Float[RealLike, "..."],
    noise: Float[RealLike, "..."] = 0.0,
    eta: Float[RealLike, "..."] = 0.0,
) -> Float[Array, "*shape"]:
    """Returns z' = α' x̃ + √(σ'² − s²) ε̃ + s n with s² = η² (1 − e^(λ−λ')) σ'².

    At η = 0, λ' may be on either side of λ.
    """
    alpha, sigma = alpha_sigma(broadcast_left(logsnr_next, x))
    if is_zero(eta):
        return alpha * x + sigma * eps
    share_of_noise = eta**2 * -jnp.expm1(broadcast_left(logsnr - logsnr_next, x))  # of the variance σ'²
    return alpha * x + sigma * (jnp.sqrt(1 - share_of_noise) * eps + jnp.sqrt(share_of_noise) * noise)


def ddim_encode(
    denoise: Callable, x: Float[Array, "b ..."], logsnrs: Float[RealLike, " t"], *, clip: bool | str = False
) -> Float[Array, "b ..."]:
    """Returns z at logsnrs[0] from which DDIM (η = 0) returns to x, up to its discretisation; DDIM section 4.3.

    x: taken as z at the last level. logsnrs: increasing, as for the sampler. T − 1 calls of denoise.
    """
    logsnrs = jnp.asarray(logsnrs, x.dtype)[::-1]
    return run_sampler(ddim(), denoise, None, x, steps_between(logsnrs[:-1], logsnrs[1:], last=False), clip=clip)
