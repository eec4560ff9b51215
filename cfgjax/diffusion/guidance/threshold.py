"""Dynamic thresholding (Imagen, Saharia et al. 2022, arXiv:2205.11487, section 2.3)."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cfgjax.diffusion.guidance.attributes import at_zero, off
from cfgjax.diffusion.guidance.cfg import Weight, cfg
from cfgjax.diffusion.guidance.denoiser import Branches, Denoiser, bind_rule
from cfgjax.diffusion.guidance.wrapper import Wrapper
from cfgjax.diffusion.prediction import Prediction, replace_x
from cfgjax.diffusion.process import RealLike, broadcast_left
from cfgjax.diffusion.specs import number, tree


@tree
@dataclass(frozen=True, repr=False)
class threshold(Wrapper):
    """x̃ ← clip(x̃, −τ, τ)/τ with τ = max(1, percentile of abs(x̃)) of each sample; ε̃ follows x̃.

    For images in [−1, 1] only, and for every weight, also w = 0. percentile: in (0, 100]; neutral: 100 where
    abs(x̃) ≤ 1.
    """

    needs_images = True

    rule: Any = field(default_factory=cfg)
    percentile: Any = 99.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "percentile", number("percentile", self.percentile, 0, 100, without_least=True))

    @property
    def at_zero(self) -> "threshold":
        return replace(self, rule=at_zero(self.rule))

    @property
    def off(self) -> "threshold":
        return replace(self, rule=off(self.rule))

    def __call__(self, predict: Callable, cond: Any, null: Any, w: Weight) -> Denoiser:
        inner = bind_rule(self.rule, predict, cond, null, w)

        def apply(z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."], memory: Any) -> tuple[Prediction, Any]:
            found, memory = inner(z, logsnr, memory)
            return thresholded(found, logsnr, self.percentile), memory

        def branches(z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."], memory: Any) -> tuple[Branches, Any]:
            found, memory = inner.branches(z, logsnr, memory)  # type: ignore[misc]
            return found._replace(guided=thresholded(found.guided, logsnr, self.percentile)), memory

        return Denoiser(apply, inner.init, inner.shift, inner.branches and branches)


def thresholded(prediction: Prediction, logsnr: Float[RealLike, "..."], percentile: Float[RealLike, ""]) -> Prediction:
    """Returns the prediction with x̃ clipped to ±τ and divided by τ, and ε̃ changed to agree with it."""
    x = prediction.x
    sizes = jnp.abs(x).reshape(x.shape[0], -1).astype(jnp.promote_types(x.dtype, jnp.float32))
    bound = broadcast_left(jnp.maximum(1, row_percentile(sizes, percentile)).astype(x.dtype), x)
    # clip alone would turn an overflow into a white pixel
    return replace_x(prediction, jnp.where(jnp.isfinite(x), jnp.clip(x, -bound, bound) / bound, jnp.nan), logsnr)


def row_percentile(sizes: Float[Array, "b n"], percentile: Float[RealLike, ""]) -> Float[Array, " b"]:
    """Returns the percentile of each row of numbers ≥ 0, as `jnp.percentile` does, without sorting.

    The bits of such numbers, as integers, have the order of the numbers. Each of them is found by counting the smaller
    elements of the row: 31 passes over float32, where a sort takes several times as long.
    """
    last = sizes.shape[1] - 1
    position = jnp.clip(jnp.asarray(percentile, sizes.dtype) / 100 * last, 0, last)
    below = jnp.floor(position)
    count = below.astype(jnp.int32)
    integers = jnp.int64 if sizes.dtype == jnp.float64 else jnp.int32
    order = jax.lax.bitcast_convert_type(sizes, integers)

    def with_bit(i: Int[Array, ""] | int, found: Int[Array, " b"]) -> Int[Array, " b"]:
        larger = found | (jnp.ones((), integers) << jnp.asarray(jnp.iinfo(integers).bits - 2 - i, integers))
        return jnp.where(jnp.sum(order < larger[:, None], axis=1) <= count, larger, found)

    lower = jax.lax.fori_loop(0, jnp.iinfo(integers).bits - 1, with_bit, jnp.zeros(len(sizes), integers))
    above = order > lower[:, None]
    following = jnp.min(jnp.where(above, order, jnp.iinfo(integers).max), axis=1)
    repeated = jnp.sum(~above, axis=1) > count + 1  # the next element is equal
    upper = jnp.where(repeated | (position == below), lower, following)
    lower, upper = (jax.lax.bitcast_convert_type(bits, sizes.dtype) for bits in (lower, upper))
    return lower + (position - below) * (upper - lower)
