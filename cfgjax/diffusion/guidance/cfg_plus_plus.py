"""CFG++ (Chung et al. 2025, arXiv:2406.08070)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Array, Float

from cfgjax.diffusion.guidance.cfg import Weight, cfg
from cfgjax.diffusion.guidance.denoiser import Branches, Denoiser, bind_mixed, with_guided
from cfgjax.diffusion.guidance.wrapper import Wrapper
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import RealLike
from cfgjax.diffusion.specs import tree


@tree
@dataclass(frozen=True, repr=False)
class cfg_plus_plus(Wrapper):
    """x̃ of ε̂_u + g (ε̂_c − ε̂_u), next to ε̂_u: DDIM renoises with the unconditional prediction.

    g = 1 + w is the paper's λ in [0, 1] and the scale of this library: `scale=0.6` is g = 0.6, w = −0.4. Hence w = 0,
    g = 1, is not the conditional model; w = −1 is the unconditional one. On levels λ, λ' it is DDIM with `cfg` and the
    scale g/(1 − e^(−(λ'−λ)/2)): what g means depends on the number of steps. Models refuse other w than −1 … 0, which
    would be much stronger guidance than the same w of `cfg`; the rule itself computes x̃ for every w.

    It is for samplers that renoise with ε̃, such as `ddim`. α x̃ + σ ε̃ is not z. What changes x̃ afterwards, clipping,
    `rescale` or `threshold`, also changes ε̃, so that α x̃ + σ ε̃ stays the same; clip="x_only" leaves ε̂_u as it is.
    """

    needs_eps = True
    weight_range = (-1.0, 0.0)

    rule: Any = field(default_factory=cfg)

    @property
    def at_zero(self) -> "cfg_plus_plus":
        return self

    def __call__(self, predict: Callable, cond: Any, null: Any, w: Weight) -> Denoiser:
        def renoised(found: Branches, z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."]) -> Prediction:
            return found.guided._replace(eps=found.weak.eps)

        return with_guided(bind_mixed(self, self.rule, predict, cond, null, w), renoised)
