"""Rescaled guidance (Lin et al. 2023, arXiv:2305.08891, section 3.4)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from cfgjax.diffusion.guidance.cfg import Weight, cfg
from cfgjax.diffusion.guidance.denoiser import Branches, Denoiser, bind_pair, with_guided
from cfgjax.diffusion.guidance.wrapper import Wrapper
from cfgjax.diffusion.prediction import Prediction, replace_x
from cfgjax.diffusion.process import RealLike, broadcast_left
from cfgjax.diffusion.specs import number, tree


@tree
@dataclass(frozen=True, repr=False)
class rescale(Wrapper):
    """x̃ ← φ x̃ std(x̂_c)/std(x̃) + (1−φ) x̃: guidance does not widen the range of the values.

    std: of each sample over all of its axes. x̂_c: of the conditional branch. phi: in [0, 1]; neutral: 0.
    """

    rule: Any = field(default_factory=cfg)
    phi: Any = 0.7

    def __post_init__(self) -> None:
        object.__setattr__(self, "phi", number("phi", self.phi, 0, 1))

    def __call__(self, predict: Callable, cond: Any, null: Any, w: Weight) -> Denoiser:
        def rescaled(found: Branches, z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."]) -> Prediction:
            x = found.guided.x
            target, std = deviations(found.strong.x), deviations(x)
            ratio = jnp.where(std > 0, target / jnp.where(std > 0, std, 1), 1)
            factor = (1 + self.phi * (ratio - 1)).astype(x.dtype)
            return replace_x(found.guided, broadcast_left(factor, x) * x, logsnr)

        return with_guided(bind_pair(self, self.rule, predict, cond, null, w), rescaled)


def deviations(x: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Returns the standard deviation of each sample over all of its axes, float32 or wider."""
    return jnp.std(x.reshape(x.shape[0], -1).astype(jnp.promote_types(x.dtype, jnp.float32)), axis=1)
