"""Autoguidance: guidance by a weaker network in place of the null branch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cfgjax.diffusion.guidance.cfg import Weight, conditional, plus_difference
from cfgjax.diffusion.guidance.denoiser import Branches, Combined
from cfgjax.diffusion.process import RealLike
from cfgjax.diffusion.specs import Spec, tree


@tree
@dataclass(frozen=True, repr=False)
class autoguidance(Spec):
    """D̃ = D_k + s (D − D_k) with s = 1 + w, Karras et al. 2024 (arXiv:2406.02507) eq. (3), and the same for ε̃.

    D is the model and D_k a weaker one with its own parameters, such as a smaller or less trained network. Both get the
    same z, λ and condition; neither needs a null label. w = 0 is the model alone, w = −1 the weak one alone. A learned
    variance is that of the model.

    weak: D_k, predict(z, logsnr [B], cond) → `Prediction`, a tree of its parameters such as
    `jax.tree_util.Partial(function, params)`; for `Model.sample` a `Model`, such as cfgjax.load(workdir, step, ema). It
    has no text: a rule made from text gets it from --weak.
    """

    weak: Any = field(default=None, metadata={"text": False})

    uses_null = False

    @property
    def at_zero(self) -> conditional:
        return conditional()

    def evaluations(self, logsnrs: Float[np.ndarray, " t"]) -> Int[np.ndarray, " t"]:
        """Returns 2 at each λ: one evaluation of each network."""
        return np.full(len(logsnrs), 2)

    def __call__(self, predict: Callable, cond: Any, null: Any = None, w: Weight = 0.0) -> Combined:
        if self.weak is None:
            raise ValueError(
                "the rule autoguidance has no weak model; give weak=…, the network that it guides away from"
            )

        def both(z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."]) -> Branches:
            logsnr = jnp.broadcast_to(logsnr, z.shape[:1])
            strong, weak = predict(z, logsnr, cond), self.weak(z, logsnr, cond)
            return Branches(strong, weak, plus_difference(strong, strong, weak, w), w)

        return Combined(both)
