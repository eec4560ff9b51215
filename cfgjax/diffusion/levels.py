"""The noise levels of a process: what λ training draws, which grid sampling takes, how a network sees λ.

`Continuous` is CFG's process, `Discrete` that of DDPM and ADM. Both know λ alone besides, so that every loss, sampler
and guidance is written once.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from cfgjax.diffusion.discrete import BETAS, kept_timesteps, logsnr_table
from cfgjax.diffusion.schedules import MAX_STEPS, SCHEDULES, logsnr_grid, network_time


@dataclasses.dataclass(frozen=True)
class Continuous:
    """λ = schedule(u) in [logsnr_min, logsnr_max] for u ~ U[0, 1], CFG section 2.

    bound_steps: transitions of the chain whose variational bound trains a learned variance.
    Raises ValueError for an unknown schedule and bounds out of order.
    """

    schedule: str = "cosine"
    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    bound_steps: int = 1000

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {self.schedule!r}; known: {', '.join(SCHEDULES)}")
        if not self.logsnr_min < self.logsnr_max:
            raise ValueError(f"logsnr_min {self.logsnr_min} is not below logsnr_max {self.logsnr_max}")
        if self.bound_steps < 2:
            raise ValueError(f"bound_steps is {self.bound_steps}; need at least 2")

    def logsnr(self, u):
        """λ of u in [0, 1], float32."""
        return SCHEDULES[self.schedule](u, self.logsnr_min, self.logsnr_max)

    def neighbour(self, u):
        """(λ of the level next to that of u in a chain of bound_steps, whether it is the noisier one).

        The neighbour is the next cleaner level; at the clean end there is none, and it is the one before.
        """
        step = 1 / self.bound_steps
        last = u < step
        return self.logsnr(jnp.where(last, u + step, u - step)), last

    def grid(self, num_steps):
        """λ of a sampler's levels, float64 [T], increasing; see `logsnr_grid`."""
        if not isinstance(num_steps, (int, np.integer)):
            raise ValueError(f"num_steps is {num_steps!r}; a process in continuous λ takes a number of steps")
        return logsnr_grid(num_steps, self.schedule, self.logsnr_min, self.logsnr_max)

    def time(self, logsnr):
        """λ as the network sees it."""
        return network_time(logsnr)


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Timesteps t = 0 … T−1, T = num_timesteps, of a β table, "linear" or "cosine", drawn uniformly.

    Raises ValueError for an unknown table, and for so few timesteps that a β is not below 1.
    """

    betas: str = "linear"
    num_timesteps: int = 1000

    def __post_init__(self):
        if self.betas not in BETAS:
            raise ValueError(f"unknown betas {self.betas!r}; known: {', '.join(BETAS)}")
        if self.num_timesteps < 2:
            raise ValueError(f"num_timesteps is {self.num_timesteps}; need at least 2")
        if self.num_timesteps > MAX_STEPS:
            raise ValueError(f"num_timesteps is {self.num_timesteps}; need at most {MAX_STEPS}")
        if not (largest := BETAS[self.betas](self.num_timesteps).max()) < 1:
            raise ValueError(f"num_timesteps is {self.num_timesteps}; {self.betas} betas reach {largest:g}; need more")

    @property
    def table(self):
        """λ_t, float64 [T], decreasing."""
        return logsnr_table(BETAS[self.betas](self.num_timesteps))

    @property
    def logsnr_min(self):
        """λ of the last timestep."""
        return float(self.table[-1])

    @property
    def logsnr_max(self):
        """λ of the first timestep."""
        return float(self.table[0])

    @property
    def bound_steps(self):
        """T."""
        return self.num_timesteps

    def timestep(self, u):
        """t = ⌊u T⌋ for u in [0, 1)."""
        return jnp.clip((u * self.num_timesteps).astype(jnp.int32), 0, self.num_timesteps - 1)

    def logsnr(self, u):
        """λ_t of u in [0, 1), float32."""
        return jnp.asarray(self.table, jnp.float32)[self.timestep(u)]

    def neighbour(self, u):
        """(λ_{t−1}, False), or (λ_1, True) at t = 0."""
        t = self.timestep(u)
        return jnp.asarray(self.table, jnp.float32)[jnp.where(t == 0, 1, t - 1)], t == 0

    def grid(self, num_steps):
        """λ of the timesteps that `kept_timesteps(T, num_steps)` keeps, float64 [K], increasing."""
        return self.table[kept_timesteps(self.num_timesteps, num_steps)][::-1]

    def time(self, logsnr):
        """The original t of λ, a float; between timesteps, which other grids may have, interpolated."""
        table = jnp.asarray(self.table[::-1], jnp.float32)
        times = jnp.arange(self.num_timesteps - 1, -1, -1, dtype=jnp.float32)
        return jnp.interp(logsnr, table, times)
