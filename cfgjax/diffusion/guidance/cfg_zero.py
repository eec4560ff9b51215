"""CFG-Zero* (Fan et al. 2025, arXiv:2503.18886)."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.guidance.apg import accumulator, inner_product
from cfgjax.diffusion.guidance.cfg import Weight, cfg
from cfgjax.diffusion.guidance.denoiser import Branches, Denoiser, bind_mixed, bind_pair, with_guided
from cfgjax.diffusion.guidance.interval import first_logsnr
from cfgjax.diffusion.guidance.wrapper import Wrapper
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import RealLike, alpha_sigma, broadcast_left
from cfgjax.diffusion.specs import number, tree

DAMPING = 1e-8  # added to ‖u_u‖², as in the paper


@tree
@dataclass(frozen=True, repr=False)
class cfg_zero(Wrapper):
    """ũ = (1+w) u_c − w s* u_u with s* = ⟨u_c, u_u⟩/‖u_u‖², on the velocity u = ε − x of the flow, and ũ = 0 at first.

    s*: of each sample over all axes. The flow is z_f = z/(α+σ) at t = σ/(α+σ), with x = z_f − t u, ε = z_f + (1−t) u.
    zero_steps: the number K of first steps with ũ = 0, in which x̃ = ε̃ = z_f, so that deterministic samplers leave z_f
    as it is; a corrector that evaluates the next level, as Heun's, moves it one step earlier. K ≥ T also replaces the
    last prediction. On another space than u it would be another rule.

    With zero_steps = 0 and branches whose s* is 1 it is `cfg`.
    """

    rule: Any = field(default_factory=cfg)
    zero_steps: Any = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "zero_steps", number("zero_steps", self.zero_steps, 0))

    @property
    def at_zero(self) -> Any:
        at_once = isinstance(self.zero_steps, int | float) and self.zero_steps == 0
        return super().at_zero if at_once else self

    def on_grid(self, logsnrs: Float[Array | np.ndarray, " t"]) -> "at_rest":
        """Returns the rule with its first steps given in λ."""
        return at_rest(replace(self, zero_steps=0.0), first_logsnr(logsnrs, self.zero_steps))

    def __call__(self, predict: Callable, cond: Any, null: Any, w: Weight) -> Denoiser:
        if not isinstance(self.zero_steps, int | float) or self.zero_steps > 0:
            raise UsageError(f"{self!r} is given in steps; take `on_grid(rule, logsnrs)` instead")

        def scaled(found: Branches, z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."]) -> Prediction:
            strong, weak = (branch.eps - branch.x for branch in (found.strong, found.weak))
            wide = accumulator(z.dtype)
            along = inner_product(strong.astype(wide), weak.astype(wide))
            scale = along / (inner_product(weak.astype(wide), weak.astype(wide)) + DAMPING)
            excess = broadcast_left((jnp.asarray(found.w) * (scale - 1)).astype(z.dtype), z) * weak
            time = flow_time(broadcast_left(logsnr, z))
            mixed = found.guided
            return mixed._replace(x=mixed.x + time * excess, eps=mixed.eps - (1 - time) * excess)

        return with_guided(bind_mixed(self, self.rule, predict, cond, null, w), scaled)


@tree
@dataclass(frozen=True, repr=False)
class at_rest(Wrapper):
    """The velocity of the flow is 0 at levels below λ = logsnr: there x̃ = ε̃ = z/(α+σ). Elsewhere it is the rule."""

    rule: Any
    logsnr: Any

    def __call__(self, predict: Callable, cond: Any, null: Any, w: Weight) -> Denoiser:
        def resting(found: Branches, z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."]) -> Prediction:
            alpha, sigma = alpha_sigma(broadcast_left(logsnr, z))
            still, rest = broadcast_left(logsnr < self.logsnr, z), z / (alpha + sigma)
            guided = found.guided
            return guided._replace(x=jnp.where(still, rest, guided.x), eps=jnp.where(still, rest, guided.eps))

        return with_guided(bind_pair(self, self.rule, predict, cond, null, w), resting)


def flow_time(logsnr: Float[RealLike, "*shape"]) -> Float[Array, "*shape"]:
    """Returns t = σ/(α+σ) = 1/(1 + e^(λ/2)) of the flow z_f = (1−t) x + t ε."""
    alpha, sigma = alpha_sigma(logsnr)
    return sigma / (alpha + sigma)
