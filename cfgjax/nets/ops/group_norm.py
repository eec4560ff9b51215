"""Group normalisation with its affine map and SiLU, as one operation with a gradient of two passes.

The divisions that SiLU and the gradient end in are there for XLA:CPU: it computes a product or a sum anew, element by
element, in whatever reads it (the transpositions of a convolution's gradient take several times as long for it), but a
division once.
"""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def group_norm(x, gain, bias, groups, epsilon, silu, dtype):
    """f((x − μ) gain / √(var + epsilon) + bias), f SiLU or the identity; μ, var over positions and a group's channels.

    x: [B, …, C]. gain, bias: float32 [B, C]. Computed in float32, returned in dtype, shaped as x. Reverse mode only.
    What the backward pass keeps is x, in x's own dtype, and arrays of [B, C].
    """
    return _forward(x, gain, bias, groups, epsilon, silu, dtype)[0]


def moments(x, groups, epsilon):
    """((x − μ) / σ, σ), σ = √(var + epsilon), of x float32 [B, N, C]: [B, N, C], and [B, 1, C] equal over a group."""
    mean = lambda values: _over_groups(values.mean(axis=1, keepdims=True), groups)
    centred = x - mean(x)
    inverse = jax.lax.rsqrt(mean(jnp.square(centred)) + epsilon)
    return centred * inverse, 1 / inverse


def _over_groups(values, groups):
    """The means of [B, 1, C] over each group's channels, in every channel of it: [B, 1, C]."""
    shape = values.shape
    means = values.reshape(*shape[:-1], groups, -1).mean(axis=-1)
    return jnp.repeat(means, shape[-1] // groups, axis=-1)


def _flat(x):
    """[B, …, C] → float32 [B, N, C]."""
    return x.astype(jnp.float32).reshape(x.shape[0], -1, x.shape[-1])


def _forward(x, gain, bias, groups, epsilon, silu, dtype):
    normal, _ = moments(_flat(x), groups, epsilon)
    y = normal * gain[:, None] + bias[:, None]
    y = y / (1 + jnp.exp(-y)) if silu else y
    return y.astype(dtype).reshape(x.shape), (x, gain, bias)


def _backward(groups, epsilon, silu, dtype, saved, grad):
    """The first pass sums over positions, the second makes the gradient of x; both compute y and its SiLU anew."""
    x, gain, bias = saved
    x, grad = jax.lax.optimization_barrier((x, grad))  # or XLA shares `normal` with the forward pass, and keeps it
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
