"""The ancestral sampler of CFG."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.process import posterior, reverse_log_variance
from cfgjax.diffusion.samplers.driver import Level
from cfgjax.diffusion.specs import Spec, number, tree


@tree
@dataclass(frozen=True, repr=False)
class ancestral(Spec):
    """Ancestral sampling, CFG algorithm 2, with reverse variance Σ = (σ̃²)^(1−v) (σ²_{λ|λ'})^v.

    v: in [0, 1]; None takes the variance that the network has learned.
    """

    v: Any = None

    takes_shift = True

    @property
    def needs_variance(self) -> bool:
        return self.v is None

    def __post_init__(self) -> None:
        if self.v is not None:
            object.__setattr__(self, "v", number("v", self.v, 0, 1))

    def init(self, z: Float[Array, "b ..."]) -> tuple:
        return ()

    def evaluations(self, num_steps: int) -> int:
        return num_steps

    def step(
        self, denoise: Callable, z: Float[Array, "b ..."], state: tuple, level: Level, noise: Float[Array, "b ..."]
    ) -> tuple[Float[Array, "b ..."], tuple]:
        """Returns z' = μ + Σ shift + √Σ n. Raises UsageError if there is no v, given or learned."""
        prediction = denoise(z, level.logsnr)
        fraction = prediction.variance if self.v is None else self.v
        if fraction is None:
            raise UsageError("v is None and the network has no learned variance: give v")
        mean, log_var_lower, log_var_upper = posterior(z, prediction.x, level.logsnr, level.logsnr_next)
        log_var = reverse_log_variance(fraction, log_var_lower, log_var_upper)
        if denoise.shift is not None:  # type: ignore[attr-defined]
            mean = mean + jnp.exp(log_var) * denoise.shift(z, mean, level.logsnr, level.logsnr_next)  # type: ignore
        return mean + jnp.exp(0.5 * log_var) * noise, state
