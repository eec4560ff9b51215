"""The 3×3 convolution, with an implementation and a gradient that are fast inside loops on XLA:CPU."""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from cfgjax.nets.ops import winograd
from cfgjax.nets.ops.platform import traced_platform

CONVOLUTION = "convolution"  # name of the results in rematerialisation policies
THIN = 16  # with fewer channels, Winograd's transformations cost more than they save
SMALL = 16  # below this height or width they do not speed up the step, and compiling takes 50% longer

ConvMap = Float[Array, "_batch _height _width _channels"]
ConvKernel = Float[Array, "_height _width _channels _outputs"]

_filtered = contextvars.ContextVar("filtered", default=True)


@contextlib.contextmanager
def unfiltered() -> Iterator[None]:
    """Disables Winograd's filtering while tracing on CPU, in order to count the operations of other devices there."""
    token = _filtered.set(False)
    try:
        yield
    finally:
        _filtered.reset(token)


def conv(x: ConvMap, kernel: ConvKernel) -> ConvMap:
    """Returns x [B, H, W, C] * kernel [h, w, C, O], [B, H, W, O], with stride 1 and padding 1 on every side."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=numbers)


@jax.custom_vjp
def conv_cpu(x: ConvMap, kernel: ConvKernel) -> ConvMap:
    """Returns `conv`, by Winograd's filtering where that is faster, with explicit gradients. Reverse mode only.

    XLA:CPU has a fast convolution for the layouts NHWC and HWIO only, and transposes other layouts to these only
    outside loops: in a scan over optimizer steps or accumulated parts, the weight gradient of `conv` takes 10 to 60
    times as long as this one.
    """
    return winograd.convolution(x, kernel) if min(kernel.shape[2:]) >= THIN and tiled(x) else conv(x, kernel)


def tiled(x: ConvMap) -> bool:
    """Whether Winograd's filtering applies to x: float32, with even height and width that are not small."""
    even = x.shape[1] % 2 == x.shape[2] % 2 == 0
    return _filtered.get() and even and min(x.shape[1:3]) >= SMALL and x.dtype == jnp.float32


def _forward(x: ConvMap, kernel: ConvKernel) -> tuple[ConvMap, tuple[ConvMap, ConvKernel]]:
    return conv_cpu(x, kernel), (x, kernel)


def _backward(saved: tuple[ConvMap, ConvKernel], grad: ConvMap) -> tuple[ConvMap, ConvKernel]:
    x, kernel = saved
    grad_x = conv_cpu(grad, kernel[::-1, ::-1].swapaxes(2, 3))
    if x.shape[-1] >= THIN and tiled(x):
        return grad_x, winograd.weight_gradient(x, grad)
    # the output gradient is the kernel [H, W, B, O], which slides over the input [C, H, W, B]
    return grad_x, conv(x.transpose(3, 1, 2, 0), grad.transpose(1, 2, 0, 3)).transpose(1, 2, 0, 3)


conv_cpu.defvjp(_forward, _backward)


def conv_general(
    x: ConvMap, kernel: ConvKernel, strides: Sequence[int], padding: Sequence[tuple[int, int]], **options: Any
) -> ConvMap:
    """Replaces `lax.conv_general_dilated` in `nn.Conv`: uses `conv_cpu` for 3×3 convolutions of stride 1 on CPU."""
    unusual = [options.get("feature_group_count", 1) != 1, options.get("precision") is not None]
    unusual += [set(options.get(name) or (1,)) != {1} for name in ("lhs_dilation", "rhs_dilation")]
    padded = kernel.shape[:2] == (3, 3) and [*map(tuple, padding)] == [(1, 1), (1, 1)]
    if padded and tuple(strides) == (1, 1) and not any(unusual) and traced_platform() == "cpu":
        return checkpoint_name(conv_cpu(x, kernel), CONVOLUTION)
    return checkpoint_name(jax.lax.conv_general_dilated(x, kernel, strides, padding, **options), CONVOLUTION)
