"""Perturbed self-attention, of which perturbed-attention guidance makes its weak branch.

It replaces what `Attention` computes from queries, keys and values while a network is applied. Parameters are the same,
and a network that is not perturbed is the same program.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from cfgjax.base.errors import UsageError
from cfgjax.nets.blocks import Attention, Heads

MIDDLE_ATTENTION = "middle_1"  # name of the attention of a `Backbone`'s middle block


class NoAttention(UsageError):
    """The network has no self-attention."""


@dataclasses.dataclass(frozen=True)
class Perturbation:
    """Which attention is perturbed, and how.

    layers: "middle" for the attention of the middle block, "all", or heights in pixels of maps. blur: standard
    deviation in positions of the Gaussian that blurs the queries (SEG), a number or [B], 0 for none, inf for their
    mean; None replaces the attention weights by the identity (PAG), so that the values pass through.
    """

    layers: str | int | tuple[int, ...]
    blur: Any = None

    def selects(self, name: str | None, height: int) -> bool:
        """Returns whether the attention of this name on maps of this height is perturbed."""
        if isinstance(self.layers, str):
            return self.layers == "all" or name == MIDDLE_ATTENTION
        return height in (self.layers if isinstance(self.layers, tuple) else (self.layers,))


def apply_perturbed(net: nn.Module, perturbation: Perturbation, *args: Any, **options: Any) -> Any:
    """Returns net.apply(*args, **options) with perturbed attention.

    Raises NoAttention if the network has no attention, and UsageError if it has none that the perturbation selects.
    """
    heights: list[int] = []
    perturbed: list[int] = []

    def intercept(call: Callable, given: tuple, more: dict, context: nn.module.InterceptorContext) -> Any:
        if not (isinstance(context.module, Attention) and context.method_name == "mixed_values"):
            return call(*given, **more)
        q, k, v, (height, width) = given
        heights.append(height)
        if not perturbation.selects(context.module.name, height):
            return call(*given, **more)
        perturbed.append(height)
        if perturbation.blur is None:
            return v
        return call(blurred(q, height, width, perturbation.blur), k, v, (height, width))

    with nn.intercept_methods(intercept):
        out = net.apply(*args, **options)
    if not heights:
        raise NoAttention(f"the network {type(net).__name__} has no self-attention to perturb")
    if not perturbed:
        found = ", ".join(map(str, sorted(set(heights))))
        raise UsageError(f"layers is {perturbation.layers!r}; the network has attention on maps of height {found}")
    return out


def blurred(q: Heads, height: int, width: int, blur: Any) -> Heads:
    """Returns queries averaged over the grid [height, width] of positions with Gaussian weights of deviation blur.

    The weights of a position sum to 1 at the border too; those of blur = inf are equal. blur = 0 returns q itself.
    """
    batch, _, heads, channels = q.shape
    blur = jnp.broadcast_to(jnp.asarray(blur, jnp.float32), (batch,))
    grid = q.reshape(batch, height, width, heads, channels).astype(jnp.float32)
    grid = jnp.einsum("bij,bjwhc->biwhc", gaussian_weights(height, blur), grid, precision="highest")
    grid = jnp.einsum("bij,byjhc->byihc", gaussian_weights(width, blur), grid, precision="highest")
    found = grid.reshape(q.shape).astype(q.dtype)
    return jnp.where((blur == 0)[:, None, None, None], q, found)


def gaussian_weights(length: int, blur: Float[Array, " batch"]) -> Float[Array, "batch length length"]:
    """Returns weights ∝ exp(−(i − j)² / 2 blur²) of the positions j in the average at i, which sum to 1 over j."""
    position = jnp.arange(length, dtype=jnp.float32)
    squared = jnp.square(position[:, None] - position)
    least = jnp.maximum(blur, 1e-3)[:, None, None]  # at which the weights are those of 0
    weights = jnp.exp(-0.5 * squared / jnp.square(least))
    return weights / weights.sum(axis=2, keepdims=True)
