"""Group normalisation with its affine map and SiLU, as one operation whose gradient takes two passes.

SiLU and the gradient end in a division for the sake of XLA:CPU. It recomputes a product or a sum element by element in
every operation that reads it, which makes the transpositions of a convolution's gradient several times slower, but it
computes a division once.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

PerChannel = Float[Array, "batch channels"]
Saved = tuple[Float[Array, "batch *positions channels"], PerChannel, PerChannel]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def group_norm(
    x: Float[Array, "batch *positions channels"],
    gain: PerChannel,
    bias: PerChannel,
    groups: int,
    epsilon: float,
    silu: bool,
    dtype: DTypeLike,
) -> Float[Array, "batch *positions channels"]:
    """Returns f((x − μ) gain / √(var + epsilon) + bias), where f is SiLU if `silu`, otherwise the identity.

    μ and var are taken over the positions and the channels of a group. gain, bias: float32. Computed in float32 and
    returned in dtype. Reverse mode only; saves x, in its own dtype, and arrays of [B, C] for the backward pass.
    """
    return _forward(x, gain, bias, groups, epsilon, silu, dtype)[0]


def moments(
    x: Float[Array, "batch positions channels"], groups: int, epsilon: float
) -> tuple[Float[Array, "batch positions channels"], Float[Array, "batch 1 channels"]]:
    """Returns ((x − μ) / σ, σ) with σ = √(var + epsilon), which is equal for all channels of a group. x: float32."""

    def mean(values: Float[Array, "batch positions channels"]) -> Float[Array, "batch 1 channels"]:
        return _over_groups(values.mean(axis=1, keepdims=True), groups)

    centred = x - mean(x)
    inverse = jax.lax.rsqrt(mean(jnp.square(centred)) + epsilon)
    return centred * inverse, 1 / inverse


def _over_groups(values: Float[Array, "batch 1 channels"], groups: int) -> Float[Array, "batch 1 channels"]:
    """Replaces each value by the mean over the channels of its group."""
    shape = values.shape
    means = values.reshape(*shape[:-1], groups, -1).mean(axis=-1)
    return jnp.repeat(means, shape[-1] // groups, axis=-1)


def _flat(x: Float[Array, "batch *positions channels"]) -> Float[Array, "batch flat_positions channels"]:
    """Returns x as float32 with one axis of positions."""
    return x.astype(jnp.float32).reshape(x.shape[0], -1, x.shape[-1])


def _forward(
    x: Float[Array, "batch *positions channels"],
    gain: PerChannel,
    bias: PerChannel,
    groups: int,
    epsilon: float,
    silu: bool,
    dtype: DTypeLike,
) -> tuple[Float[Array, "batch *positions channels"], Saved]:
    normal, _ = moments(_flat(x), groups, epsilon)
    y = normal * gain[:, None] + bias[:, None]
    y = y / (1 + jnp.exp(-y)) if silu else y
    return y.astype(dtype).reshape(x.shape), (x, gain, bias)


def _backward(
    groups: int,
    epsilon: float,
    silu: bool,
    dtype: DTypeLike,
    saved: Saved,
    grad: Float[Array, "batch *positions channels"],
) -> Saved:
    """Returns the gradients. One pass sums over positions, one computes that of x; both recompute y and its SiLU."""
    x, gain, bias = saved
    x, grad = jax.lax.optimization_barrier((x, grad))  # otherwise XLA saves `normal` from the forward pass
    normal, sigma = moments(_flat(x), groups, epsilon)
    gain, grad = gain[:, None], _flat(grad)
    if silu:
        y = normal * gain + bias[:, None]
        gate = 1 / (1 + jnp.exp(-y))
        grad = grad * gate * (1 + y * (1 - gate))
    grad_bias, grad_gain = (total.sum(axis=1, keepdims=True) for total in (grad, grad * normal))
    shift, slope = (_over_groups(gain * total / normal.shape[1], groups) for total in (grad_bias, grad_gain))
    grad_x = (grad * gain - shift - normal * slope) / sigma
    return grad_x.astype(x.dtype).reshape(x.shape), grad_gain[:, 0], grad_bias[:, 0]


group_norm.defvjp(_forward, _backward)
