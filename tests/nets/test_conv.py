"""Laws of the convolution with a hand-written gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.nets.ops.conv import SMALL, THIN, conv, conv_cpu, conv_general, unfiltered

SHAPES = [((3, 5, 7, 2), 4), ((2, 1, 4, 3), 3)]  # x, and the number of output channels
TILED = [((2, SMALL, SMALL + 2, THIN), THIN + 3), ((2, SMALL, SMALL, THIN), 3), ((2, SMALL, SMALL, 3), THIN)]


def operands(shape, features, dtype=jnp.float32):
    """x, a kernel, and a gradient of the output."""
    rng = np.random.default_rng(0)
    sizes = shape, (3, 3, shape[-1], features), (*shape[:-1], features)
    return [jnp.asarray(rng.standard_normal(size), dtype) for size in sizes]


def gradients(convolve, x, kernel, grad):
    return jax.jit(jax.grad(lambda x, kernel: jnp.vdot(convolve(x, kernel), grad), argnums=(0, 1)))(x, kernel)


def in_scan(convolve):
    """Three convolutions in a loop, each with the kernel of the last, changed; their sum."""

    def looped(x, kernel):
        step = lambda carry, scale: ((carry[0], carry[1] * scale), convolve(carry[0] * scale, carry[1]))
        return jax.lax.scan(step, (x, kernel), jnp.array([1.0, 0.5, -2.0], x.dtype))[1].sum(axis=0)

    return looped


@pytest.mark.parametrize("loop", [lambda convolve: convolve, in_scan], ids=["plain", "scan"])
@pytest.mark.parametrize(
    ("shape", "features"), [*SHAPES, TILED[0], *[pytest.param(*sizes, marks=pytest.mark.slow) for sizes in TILED[1:]]]
)
def test_the_custom_gradient_equals_that_of_the_convolution(shape, features, loop):
    x, kernel, grad = operands(shape, features)
    outputs = [jax.jit(loop(convolve))(x, kernel) for convolve in (conv_cpu, conv)]
    np.testing.assert_allclose(*outputs, atol=5e-5)
    for ours, theirs in zip(*(gradients(loop(f), x, kernel, grad) for f in (conv_cpu, conv)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_bfloat16_gradients_are_the_float32_ones_rounded():
    low = operands((3, 5, 7, 2), 4, jnp.bfloat16)
    exact = gradients(conv, *(a.astype(jnp.float32) for a in low))
    for ours, expected in zip(gradients(conv_cpu, *low), exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(ours.astype(jnp.float32), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("stride", "size"), [(1, 3), (2, 3), (1, 5)])
def test_the_numpy_replacement_of_lax_equals_lax(stride, size):
    x, kernel, _ = operands((2, 6, 8, 3), 4)
    kernel = jnp.resize(kernel, (size, size, 3, 4))
    arguments = x, kernel, (stride, stride), ((1, 1), (1, 1))
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    expected = jax.lax.conv_general_dilated(*arguments, **options)
    np.testing.assert_allclose(conv_general(*arguments, **options), expected, atol=1e-5)


def convolutions(convolve, x, kernel, grad):
    """The number of convolutions that a convolution and its gradients are traced to."""
    traced = jax.make_jaxpr(lambda *given: gradients(convolve, *given))(x, kernel, grad)
    return str(traced).count("conv_general_dilated[")


@pytest.mark.parametrize(
    ("shape", "features", "tiled"), [(*TILED[0], 3), (*TILED[1], 1), (*TILED[2], 0), (*SHAPES[0], 0)]
)
def test_only_wide_maps_of_many_channels_are_filtered_in_tiles(shape, features, tiled):
    given = operands(shape, features)
    assert convolutions(conv_cpu, *given) == 3 - tiled
    with unfiltered():
        assert convolutions(lambda x, kernel: conv_cpu(x, kernel), *given) == 3
    odd = (shape[0], shape[1] + 1, *shape[2:])
    assert convolutions(conv_cpu, *operands(odd, features)) == 3
    assert convolutions(conv_cpu, *operands(shape, features, jnp.bfloat16)) == 3
