"""Laws of the group norm with a hand-written gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.nets.ops.group_norm import group_norm

SHAPES = [((3, 5, 7, 8), 4), ((2, 1, 3, 6), 6), ((4, 6, 4), 2)]  # x, and the number of groups


def plain(x, gain, bias, groups, epsilon, silu, dtype):
    """The formula, its gradients left to jax."""
    grouped = x.astype(jnp.float32).reshape(len(x), -1, groups, x.shape[-1] // groups)
    mean, var = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    normal = ((grouped - mean) / jnp.sqrt(var + epsilon)).reshape(len(x), -1, x.shape[-1])
    y = (normal * gain[:, None] + bias[:, None]).reshape(x.shape)
    return (jax.nn.silu(y) if silu else y).astype(dtype)


def operands(shape, dtype=jnp.float32, offset=0.0):
    """x, gain, bias, and a gradient of the result."""
    rng = np.random.default_rng(0)
    x, grad = rng.standard_normal((2, *shape))
    gain, bias = rng.standard_normal((2, shape[0], shape[-1]))
    return jnp.asarray(x + offset, dtype), jnp.float32(gain), jnp.float32(bias), jnp.asarray(grad, dtype)


def value_and_gradients(norm, x, gain, bias, grad, groups, silu, looped=False):
    """(the result, its gradients by x, gain and bias), the third of three in a loop if looped."""

    def run(x, gain, bias):
        apply = lambda x: norm(x, gain, bias, groups, 1e-5, silu, x.dtype)
        return jax.lax.scan(lambda x, _: (apply(x), None), x, length=3)[0] if looped else apply(x)

    y, pull = jax.jit(lambda *given: jax.vjp(run, *given))(x, gain, bias)
    return y, *pull(grad)


@pytest.mark.parametrize("looped", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "scan"])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_value_and_custom_gradients_equal_the_formula(shape, groups, silu, looped):
    given = operands(shape)
    found, expected = (value_and_gradients(norm, *given, groups, silu, looped) for norm in (group_norm, plain))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("silu", [False, True])
def test_bfloat16_is_the_float32_result_rounded(silu):
    low = operands((3, 5, 7, 8), jnp.bfloat16)
    exact = tuple(a.astype(jnp.float32) for a in low)
    for ours, expected in zip(*(value_and_gradients(group_norm, *g, 4, silu) for g in (low, exact)), strict=True):
        np.testing.assert_allclose(ours.astype(jnp.float32), expected, rtol=0.02, atol=0.02)
    assert value_and_gradients(group_norm, *low, 4, silu)[1].dtype == jnp.bfloat16


def test_the_gradient_holds_far_from_zero():
    near, far = operands((2, 4, 4, 8)), operands((2, 4, 4, 8), offset=64.0)  # 64: x keeps its digits to 2⁻¹⁸
    for ours, expected in zip(*(value_and_gradients(group_norm, *g, 2, True) for g in (far, near)), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3)


def test_silu_of_large_values_is_finite():
    x, gain, bias, grad = operands((2, 4, 4, 8))
    for a in value_and_gradients(group_norm, x, 1e4 * gain, bias, grad, 2, True):
        assert np.isfinite(a).all()


def test_the_backward_pass_only_stores_the_input():
    x, gain, bias, _ = operands((2, 4, 4, 8), jnp.bfloat16)
    _, pull = jax.vjp(lambda *given: group_norm(*given, 2, 1e-5, True, jnp.bfloat16), x, gain, bias)
    kept = [leaf for leaf in jax.tree.leaves(pull) if leaf.size >= x.size]
    assert [(leaf.shape, leaf.dtype) for leaf in kept] == [(x.shape, x.dtype)]
