"""The 3×3 convolution, with a form and a gradient that XLA:CPU runs fast inside loops."""

import contextlib
import contextvars

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from cfgjax.nets.ops import winograd

CONVOLUTION = "convolution"  # the name of results for rematerialisation policies
THIN = 16  # channels, below which the transformations cost more than they save
SMALL = 16  # height and width, below which the step gains nothing, while compiling takes half as long again

_filtered = contextvars.ContextVar("filtered", default=True)


@contextlib.contextmanager
def unfiltered():
    """A context in which tracing on CPU leaves Winograd's filtering out: for counting there what other devices do."""
    token = _filtered.set(False)
    try:
        yield
    finally:
        _filtered.reset(token)


def conv(x, kernel):
    """x [B, H, W, C] * kernel [h, w, C, O], stride 1, padded by one on every side: [B, H, W, O]."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=numbers)


@jax.custom_vjp
def conv_cpu(x, kernel):
    """`conv`, by Winograd's filtering where that is faster, and its gradients written out too. Reverse mode only.

    XLA:CPU has a fast convolution for NHWC and HWIO alone, and brings others into it only outside loops: in a scan
    over optimizer steps or accumulated parts the weight gradient of `conv` takes 10 to 60 times as long as this one.
    """
    return winograd.convolution(x, kernel) if min(kernel.shape[2:]) >= THIN and tiled(x) else conv(x, kernel)


def tiled(x):
    """Whether x [B, H, W, C] is to be cut into 2×2 tiles: float32, of an even and not a small height and width."""
    even = x.shape[1] % 2 == x.shape[2] % 2 == 0
    return _filtered.get() and even and min(x.shape[1:3]) >= SMALL and x.dtype == jnp.float32


def _forward(x, kernel):
    return conv_cpu(x, kernel), (x, kernel)


def _backward(saved, grad):
    x, kernel = saved
    grad_x = conv_cpu(grad, kernel[::-1, ::-1].swapaxes(2, 3))
    if x.shape[-1] >= THIN and tiled(x):
        return grad_x, winograd.weight_gradient(x, grad)
    # the output gradient as a kernel [H, W, B, O] slides over the input [C, H, W, B]
    return grad_x, conv(x.transpose(3, 1, 2, 0), grad.transpose(1, 2, 0, 3)).transpose(1, 2, 0, 3)


conv_cpu.defvjp(_forward, _backward)


def conv_general(x, kernel, strides, padding, **options):
    """In place of `lax.conv_general_dilated`, for `nn.Conv`: the CPU form for 3×3 at stride 1 on that platform."""
    unusual = [options.get("feature_group_count", 1) != 1, options.get("precision") is not None]
    unusual += [set(options.get(name) or (1,)) != {1} for name in ("lhs_dilation", "rhs_dilation")]
    padded = kernel.shape[:2] == (3, 3) and [*map(tuple, padding)] == [(1, 1), (1, 1)]
    if padded and tuple(strides) == (1, 1) and not any(unusual) and jax.default_backend() == "cpu":
        return checkpoint_name(conv_cpu(x, kernel), CONVOLUTION)
    return checkpoint_name(jax.lax.conv_general_dilated(x, kernel, strides, padding, **options), CONVOLUTION)
