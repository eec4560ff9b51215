"""Classifier-free guidance, the paper's rule, and the rule of no guidance."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from cfgjax.diffusion.guidance.conditions import branches
from cfgjax.diffusion.guidance.denoiser import Branches, Combined
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import RealLike, broadcast_left
from cfgjax.diffusion.specs import Spec, tree

Weight = Float[RealLike, "..."]  # w, a number or [B]


def scale_to_weight(scale: Shaped[ArrayLike, "*shape"]) -> Shaped[ArrayLike, "*shape"]:
    """Returns w = s − 1 of a guidance scale s in the convention in which s = 1 is the conditional model."""
    return scale - 1


@tree
@dataclass(frozen=True, repr=False)
class conditional(Spec):
    """denoise(z, logsnr) = predict(z, logsnr, cond): no guidance, and half the work of `cfg` at w = 0."""

    uses_null = False
    has_weak = False

    def __call__(self, predict: Callable, cond: Any, null: Any = None, w: Weight = 0.0) -> Callable:
        def denoise(z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."]) -> Prediction:
            return predict(z, jnp.broadcast_to(logsnr, z.shape[:1]), cond)

        return denoise


@tree
@dataclass(frozen=True, repr=False)
class cfg(Spec):
    """ε̃ = (1+w) ε(z, c) − w ε(z) and the same for x̃: classifier-free guidance, CFG eq. (6).

    The two branches are one call of predict. A learned variance is that of the conditional branch.
    """

    uses_null = True

    @property
    def at_zero(self) -> conditional:
        return conditional()

    def __call__(self, predict: Callable, cond: Any, null: Any, w: Weight) -> Combined:
        def both(z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."]) -> Branches:
            with_cond, without = branches(predict, z, logsnr, (cond, null))
            return Branches(with_cond, without, mixed(with_cond, without, w), w)

        return Combined(both)


def mixed(strong: Prediction, weak: Prediction, w: Weight) -> Prediction:
    """Returns (1+w) · strong − w · weak, of x̂ and of ε̂, with the variance of strong."""
    weight = broadcast_left(jnp.asarray(w, strong.eps.dtype), strong.eps)
    x = (1 + weight) * strong.x - weight * weak.x
    eps = (1 + weight) * strong.eps - weight * weak.eps
    return Prediction(x, eps, strong.variance)


def plus_difference(prediction: Prediction, strong: Prediction, weak: Prediction, w: Weight) -> Prediction:
    """Returns prediction + w (strong − weak), of x̂ and of ε̂, with the variance of prediction.

    Unlike `mixed`, it is exactly the prediction wherever strong and weak are equal.
    """
    weight = broadcast_left(jnp.asarray(w, prediction.eps.dtype), prediction.eps)
    x = prediction.x + weight * (strong.x - weak.x)
    eps = prediction.eps + weight * (strong.eps - weak.eps)
    return Prediction(x, eps, prediction.variance)
