"""Guidance of some channels alone, as the published results of DiT and SiT have it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cfgjax.diffusion.guidance.cfg import Weight, cfg
from cfgjax.diffusion.guidance.denoiser import Branches, Denoiser, bind_pair, with_guided
from cfgjax.diffusion.guidance.wrapper import Wrapper
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import RealLike
from cfgjax.diffusion.specs import number, tree


@tree
@dataclass(frozen=True, repr=False)
class channels(Wrapper):
    """The first n channels (last axis) of the rule's result, the others of the conditional branch.

    n = 3 is what DiT and SiT did with the 4 channels of their latents. Neutral: n of at least the number of channels.
    """

    rule: Any = field(default_factory=cfg)
    n: Any = math.inf

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", number("n", self.n, 0))

    def __call__(self, predict: Callable, cond: Any, null: Any, w: Weight) -> Denoiser:
        def first(found: Branches, z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."]) -> Prediction:
            guided = jnp.arange(z.shape[-1]) < self.n
            return jax.tree.map(lambda a, b: jnp.where(guided, a, b), found.guided, found.strong)

        return with_guided(bind_pair(self, self.rule, predict, cond, null, w), first)
