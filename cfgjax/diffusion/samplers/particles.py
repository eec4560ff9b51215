"""Exact samples of the tilted density by weighted particles."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.guidance.denoiser import Branches
from cfgjax.diffusion.process import broadcast_left
from cfgjax.diffusion.samplers.ancestral import ancestral
from cfgjax.diffusion.samplers.driver import Level
from cfgjax.diffusion.specs import Spec, number, tree

RESAMPLING = 2**32 - 3  # folded into the keys of samples, where noise has its step
FINAL_STEP = 2**32 - 1  # of the resampling after the last level


class Particles(NamedTuple):
    """The state of `tilted`, each [B]: the keys of the samples, log ω since their group was last resampled, and ESS.

    ess: effective sample size (Σ ω)² / Σ ω² of the sample's group at this level, before it is resampled.
    """

    keys: Key[Array, " b"]
    log_weights: Float[Array, " b"]
    ess: Float[Array, " b"]


@tree
@dataclass(frozen=True, repr=False)
class tilted(Spec):
    """Ancestral sampling of groups of weighted particles, whose density tends to p(x|c)^(1+w) p(x)^(−w).

    Guided scores alone do not sample this density. A particle under the ancestral SDE with the scores of `cfg` gets the
    log-weight d log ω = ½ w (1+w) ‖ε_c − ε_u‖² dλ (Feynman–Kac correctors, Skreta et al. 2025, arXiv:2503.02819; the
    formula for this process is our derivation). Samples i with the same i // particles are a group. It is resampled
    systematically when its effective sample size is below particles / 2, and after the last level.

    The density is that of rules for which ε̃ = ε_c + w (ε_c − ε_k) with one w at all levels, such as cfg and
    autoguidance, in the limit of many particles and levels, without clipping. w = 0 and w = −1 give all particles the
    same weight, and the samples of `ancestral`. All labels and weights w of a group must be the same. On images the
    weights degenerate: look at the effective sample size; a group may consist of copies of a few particles.

    v: see `ancestral`; the limit is the same for all. particles: number of samples in a group, which divides the batch.
    """

    v: Any = 0.0
    particles: Any = field(default=16, metadata={"static": True})

    needs_branches = True
    takes_keys = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "v", number("v", self.v, 0, 1))
        if not isinstance(self.particles, int) or isinstance(self.particles, bool) or self.particles < 2:
            raise UsageError(f"particles is {self.particles!r}; need an integer of at least 2")

    @property
    def group_size(self) -> int:
        """The number of samples that are drawn together."""
        return self.particles

    def init(self, z: Float[Array, "b ..."], keys: Key[Array, " b"]) -> Particles:
        """Returns equal weights. Raises UsageError unless the batch consists of complete groups."""
        batch, size = z.shape[0], self.particles
        if batch % size:
            raise UsageError(f"a batch of {batch} samples is not divisible by the {size} particles of {self!r}")
        return Particles(keys, jnp.zeros(batch, jnp.float32), jnp.full(batch, float(size), jnp.float32))

    def evaluations(self, num_steps: int) -> int:
        return num_steps

    def step(
        self, denoise: Callable, z: Float[Array, "b ..."], state: Particles, level: Level, noise: Float[Array, "b ..."]
    ) -> tuple[Float[Array, "b ..."], Particles]:
        """Returns `ancestral`'s z' and the weights, resampled where the effective sample size is too small."""
        z, _ = ancestral(self.v).step(denoise, z, (), level, noise)
        branches: Branches | None = denoise.branches  # type: ignore[attr-defined]
        if branches is None:
            raise UsageError(f"{self!r} needs a rule that combines two predictions, such as cfg()")
        if jax.tree.leaves(denoise.memory):  # type: ignore[attr-defined]
            raise UsageError(f"{self!r} resamples particles, so its rule must have no memory; use a rule such as cfg()")
        step = jnp.where(level.last, 0.0, level.logsnr_next - level.logsnr)
        log_weights = state.log_weights + step * log_weight_rate(branches)
        ess = effective_sample_size(log_weights, self.particles)
        few = ess < self.particles / 2
        z, log_weights = resampled(state.keys, level.step, z, log_weights, few, self.particles)
        return z, Particles(state.keys, log_weights, jnp.repeat(ess, self.particles))

    def finish(self, x: Float[Array, "b ..."], state: Particles) -> Float[Array, "b ..."]:
        """Returns samples of equal weight: those of each group with unequal weights, resampled."""
        groups = state.log_weights.reshape(-1, self.particles)
        unequal = jnp.any(groups != groups[:, :1], axis=1)
        return resampled(state.keys, FINAL_STEP, x, state.log_weights, unequal, self.particles)[0]


def log_weight_rate(branches: Branches) -> Float[Array, " b"]:
    """Returns d log ω / dλ = ½ w (1+w) ‖ε_c − ε_u‖² of each sample, float32."""
    difference = (branches.strong.eps - branches.weak.eps).astype(jnp.float32)
    squared = jnp.sum(jnp.square(difference), axis=tuple(range(1, difference.ndim)))
    w = jnp.asarray(branches.w, jnp.float32)
    return 0.5 * w * (1 + w) * squared


def effective_sample_size(log_weights: Float[Array, " b"], size: int) -> Float[Array, " groups"]:
    """Returns (Σ ω)² / Σ ω² of each group of `size` samples."""
    weights = jax.nn.softmax(log_weights.reshape(-1, size), axis=1)
    return 1 / jnp.sum(jnp.square(weights), axis=1)


def resampled(
    keys: Key[Array, " b"],
    step: int | Int[Array, ""],
    z: Float[Array, "b ..."],
    log_weights: Float[Array, " b"],
    where: Bool[Array, " groups"],
    size: int,
) -> tuple[Float[Array, "b ..."], Float[Array, " b"]]:
    """Returns (z, log-weights) after systematic resampling of the groups of `size` in which `where` is true.

    Their log-weights are 0 then. The draw of a group depends only on the key of its first sample and the step.
    """

    def draw(key: Key[Array, ""], log_weights: Float[Array, " size"]) -> Int[Array, " size"]:
        start = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, RESAMPLING), step))
        cumulative = jnp.cumsum(jax.nn.softmax(log_weights))
        positions = (jnp.arange(size) + start) / size * cumulative[-1]
        return jnp.minimum(jnp.searchsorted(cumulative, positions, side="right"), size - 1)

    groups = log_weights.reshape(-1, size)
    index = jax.vmap(draw)(keys[::size], groups)
    index = jnp.where(where[:, None], index, jnp.arange(size))
    by_group = z.reshape(-1, size, *z.shape[1:])
    z = jnp.take_along_axis(by_group, broadcast_left(index, by_group), axis=1).reshape(z.shape)
    return z, jnp.where(where[:, None], 0.0, groups).reshape(-1)
