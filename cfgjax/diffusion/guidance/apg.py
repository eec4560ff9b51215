"""Adaptive projected guidance (Sadat et al. 2025, arXiv:2410.02416)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cfgjax.diffusion.guidance.cfg import Weight, cfg
from cfgjax.diffusion.guidance.denoiser import Branches, Denoiser, bind_mixed, from_branches
from cfgjax.diffusion.guidance.wrapper import Wrapper
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import RealLike, broadcast_left
from cfgjax.diffusion.specs import number, tree


@tree
@dataclass(frozen=True, repr=False)
class apg(Wrapper):
    """x̃ = x̂_c + w (Δ⊥ + η Δ∥): guidance with less of its part along x̂_c, which saturates images.

    Δ = x̂_c − x̂_u. Momentum: Δ̄ ← Δ + β Δ̄, from 0, once per level, in float32 or wider. Bound: D = Δ̄ min(1, r/‖Δ̄‖).
    Projection: Δ∥ = ⟨D, x̂_c⟩ x̂_c/‖x̂_c‖² and Δ⊥ = D − Δ∥, per sample over all axes. ε̃ agrees with x̃.

    eta: η; the paper uses 0. beta: β; the paper uses −0.75 … 0. r: positive. Neutral: η = 1, β = 0, r = ∞.
    It acts on x̂, whatever the network predicts; on ε̂ it would be another rule.
    """

    rule: Any = field(default_factory=cfg)
    eta: Any = 0.0
    beta: Any = 0.0
    r: Any = math.inf

    def __post_init__(self) -> None:
        for name, least in (("eta", -math.inf), ("beta", -math.inf), ("r", 0)):
            object.__setattr__(self, name, number(name, getattr(self, name), least))

    def __call__(self, predict: Callable, cond: Any, null: Any, w: Weight) -> Denoiser:
        inner = bind_mixed(self, self.rule, predict, cond, null, w)

        def init(z: Float[Array, "b ..."]) -> tuple:
            return inner.init(z), jnp.zeros(z.shape, accumulator(z.dtype))

        def branches(z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."], memory: tuple) -> tuple[Branches, tuple]:
            found, after = inner.branches(z, logsnr, memory[0])  # type: ignore[misc]
            guided, average = self.project(found, logsnr, memory[1])
            return found._replace(guided=guided), (after, average)

        return from_branches(branches, init, inner.shift)

    def project(
        self, found: Branches, logsnr: Float[RealLike, "..."], average: Float[Array, "b ..."]
    ) -> tuple[Prediction, Float[Array, "b ..."]]:
        """Returns the guided prediction and Δ̄, from that of the level before."""
        strong, weak, dtype = found.strong, found.weak, found.strong.x.dtype
        x = strong.x.astype(average.dtype)
        past = self.beta * average
        average = (x - weak.x) + past
        bound = broadcast_left(
            jnp.minimum(1, self.r / jnp.maximum(jnp.sqrt(inner_product(average, average)), FLOOR)), x
        )
        along = broadcast_left(inner_product(bound * average, x) / jnp.maximum(inner_product(x, x), FLOOR), x)
        removed = (1 - self.eta) * along * x
        # in ε, Δ is taken as ε̂_c − ε̂_u: the difference of x̂ has lost its digits where λ is large
        signal_to_noise = jnp.exp(0.5 * broadcast_left(logsnr, x))
        change = bound * (strong.eps - weak.eps) - signal_to_noise * (bound * past - removed)
        weight = broadcast_left(jnp.asarray(found.w, x.dtype), x)
        guided_x = x + weight * (bound * average - removed)
        guided_eps = strong.eps + weight * change
        return Prediction(guided_x.astype(dtype), guided_eps.astype(dtype), strong.variance), average.astype(past.dtype)


FLOOR = 1e-30  # keeps 0/0 from being nan where both branches, or x̂_c, are 0


def accumulator(dtype: DTypeLike) -> DTypeLike:
    """Returns float32, or dtype if it is wider."""
    return jnp.promote_types(dtype, jnp.float32)


def inner_product(a: Float[Array, "b ..."], b: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Returns ⟨a, b⟩ of each sample over all of its axes."""
    return jnp.sum((a * b).reshape(a.shape[0], -1), axis=1)
