"""Laws of Winograd's minimal filtering."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.nets.ops import winograd
from cfgjax.nets.ops.conv import conv

convolution, weight_gradient = jax.jit(winograd.convolution), jax.jit(winograd.weight_gradient)

SHAPES = [((2, 4, 6, 3), 5), ((1, 2, 2, 1), 1), ((3, 8, 8, 4), 4)]  # x, and the number of output channels


def operands(shape, features):
    """x, a kernel and a gradient of the output, in float64."""
    rng = np.random.default_rng(0)
    sizes = shape, (3, 3, shape[-1], features), (*shape[:-1], features)
    return [jnp.asarray(rng.standard_normal(size), jnp.float64) for size in sizes]


@pytest.mark.parametrize(("shape", "features"), SHAPES)
def test_filtering_in_tiles_equals_the_convolution_and_its_weight_gradient(shape, features):
    with jax.enable_x64(True):
        x, kernel, grad = operands(shape, features)
        by_kernel = jax.grad(lambda kernel: jnp.vdot(conv(x, kernel), grad))(kernel)
        np.testing.assert_allclose(convolution(x, kernel), conv(x, kernel), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(weight_gradient(x, grad), by_kernel, rtol=1e-12, atol=1e-12)


def test_float32_loses_only_a_few_of_the_last_bits():
    with jax.enable_x64(True):
        x, kernel, _ = operands((4, 16, 16, 64), 64)
        expected = np.asarray(conv(x, kernel))
        found = np.asarray(convolution(x.astype(jnp.float32), kernel.astype(jnp.float32)))
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


def test_a_kernel_with_one_nonzero_entry_shifts_the_image():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 6, 1)), jnp.float32)
    for i, j in np.ndindex(3, 3):
        kernel = jnp.zeros((3, 3, 1, 1)).at[i, j].set(1.0)
        moved = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))[:, i : i + 4, j : j + 6]
        np.testing.assert_allclose(convolution(x, kernel), moved, atol=1e-6)
