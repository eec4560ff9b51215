"""The noise levels of a process: the distribution of λ in training, the grid of sampling, and λ as the network sees it.

`Continuous` is CFG's process, `Discrete` that of DDPM and ADM. Both are defined in terms of λ, so that every loss,
sampler and guidance rule is written once. A position u in [0, 1) stands for a level: 0 is the cleanest.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Float64, Int

from cfgjax.diffusion.discrete import BETAS, kept_timesteps, logsnr_table
from cfgjax.diffusion.process import RealLike
from cfgjax.diffusion.schedules import MAX_STEPS, logsnr_grid, network_time, parse_schedule


@dataclasses.dataclass(frozen=True)
class Continuous:
    """λ = schedule(u) in [logsnr_min, logsnr_max] for u ~ U[0, 1], CFG section 2.

    schedule: the text of one of `SCHEDULES`, such as "cosine" or "normal(mean=0.8, std=2)". bound_steps: number of
    levels of the chain whose variational bound trains a learned variance.
    Raises ValueError for an unknown schedule, bounds out of order, and bounds that the schedule refuses.
    """

    schedule: str = "cosine"
    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    bound_steps: int = 1000

    def __post_init__(self) -> None:
        quantile = parse_schedule(self.schedule)
        if not self.logsnr_min < self.logsnr_max:
            raise ValueError(f"logsnr_min {self.logsnr_min} is not below logsnr_max {self.logsnr_max}")
        if self.bound_steps < 2:
            raise ValueError(f"bound_steps is {self.bound_steps}; need at least 2")
        quantile(np.array(0.5), self.logsnr_min, self.logsnr_max, xp=np)  # raises an error if the bounds do not fit

    def logsnr(self, u: Float[RealLike, "*shape"]) -> Float[Array, "*shape"]:
        """Returns λ = schedule(u)."""
        return parse_schedule(self.schedule)(u, self.logsnr_min, self.logsnr_max)

    def neighbour(self, u: Float[RealLike, "*shape"]) -> tuple[Float[Array, "*shape"], Bool[Array, "*shape"]]:
        """Returns (λ of the neighbour of u in a chain of bound_steps levels, whether u is the cleanest level).

        The neighbour is the next cleaner level, and for the cleanest level the next noisier one.
        """
        u, step = jnp.asarray(u), 1 / self.bound_steps
        last = u < step
        return self.logsnr(jnp.where(last, u + step, u - step)), last

    def grid(self, num_steps: int | np.integer | str) -> Float64[np.ndarray, " t"]:
        """Returns λ of a sampler's levels, increasing; see `logsnr_grid`. Raises ValueError for a spacing."""
        if not isinstance(num_steps, (int, np.integer)):
            raise ValueError(f"num_steps is {num_steps!r}; a process in continuous λ takes a number of steps")
        return logsnr_grid(num_steps, self.schedule, self.logsnr_min, self.logsnr_max)

    def time(self, logsnr: Float[RealLike, "*shape"]) -> Float[Array, "*shape"]:
        """Returns λ as the network sees it, `network_time`."""
        return network_time(logsnr)


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Timesteps t = 0 … T−1, T = num_timesteps, of a β table, drawn uniformly; DDPM algorithm 1.

    betas: a name of `BETAS`. Raises ValueError for an unknown table, and if there are so few timesteps that a β reaches
    1.
    """

    betas: str = "linear"
    num_timesteps: int = 1000

    def __post_init__(self) -> None:
        if self.betas not in BETAS:
            raise ValueError(f"unknown betas {self.betas!r}; known: {', '.join(BETAS)}")
        if self.num_timesteps < 2:
            raise ValueError(f"num_timesteps is {self.num_timesteps}; need at least 2")
        if self.num_timesteps > MAX_STEPS:
            raise ValueError(f"num_timesteps is {self.num_timesteps}; need at most {MAX_STEPS}")
        if not (largest := BETAS[self.betas](self.num_timesteps).max()) < 1:
            raise ValueError(f"num_timesteps is {self.num_timesteps}; {self.betas} betas reach {largest:g}; need more")

    @property
    def table(self) -> Float64[np.ndarray, " t"]:
        """λ_t of all timesteps, decreasing."""
        return logsnr_table(BETAS[self.betas](self.num_timesteps))

    @property
    def logsnr_min(self) -> float:
        """λ of the last timestep."""
        return float(self.table[-1])

    @property
    def logsnr_max(self) -> float:
        """λ of the first timestep."""
        return float(self.table[0])

    @property
    def bound_steps(self) -> int:
        """T, the number of levels of the chain whose variational bound trains a learned variance."""
        return self.num_timesteps

    def timestep(self, u: Float[RealLike, "*shape"]) -> Int[Array, "*shape"]:
        """Returns t = ⌊u T⌋."""
        return jnp.clip((jnp.asarray(u) * self.num_timesteps).astype(jnp.int32), 0, self.num_timesteps - 1)

    def logsnr(self, u: Float[RealLike, "*shape"]) -> Float32[Array, "*shape"]:
        """Returns λ_t at t = ⌊u T⌋."""
        return jnp.asarray(self.table, jnp.float32)[self.timestep(u)]

    def neighbour(self, u: Float[RealLike, "*shape"]) -> tuple[Float32[Array, "*shape"], Bool[Array, "*shape"]]:
        """Returns (λ_{t−1}, False), or (λ_1, True) at t = 0."""
        t = self.timestep(u)
        return jnp.asarray(self.table, jnp.float32)[jnp.where(t == 0, 1, t - 1)], t == 0

    def grid(self, num_steps: int | np.integer | str) -> Float64[np.ndarray, " k"]:
        """Returns λ at `kept_timesteps(T, num_steps)`, increasing. Raises ValueError as that does."""
        return self.table[kept_timesteps(self.num_timesteps, num_steps)][::-1]

    def time(self, logsnr: Float[RealLike, "*shape"]) -> Float32[Array, "*shape"]:
        """Returns the timestep t of λ, interpolated for a λ between two timesteps."""
        table = jnp.asarray(self.table[::-1], jnp.float32)
        times = jnp.arange(self.num_timesteps - 1, -1, -1, dtype=jnp.float32)
        return jnp.interp(logsnr, table, times)
