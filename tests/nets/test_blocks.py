"""Laws of the U-Net's blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.nets.blocks import (
    Attention,
    GroupNorm,
    Resample,
    ResBlock,
    downsample,
    fused_attention,
    plain_attention,
    time_embedding,
    upsample,
)

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((2, 4, 6, 64)), jnp.float32)
EMB = jnp.asarray(RNG.standard_normal((2, 16)), jnp.float32)
PROJECTION = RNG.standard_normal((64, 64), np.float32)


def group_norm(x, gamma, beta, scale=0, shift=0):
    """GroupNorm(32) and AdaGN as ADM defines them, in float64, one group at a time."""
    out = np.empty(x.shape)
    for group in np.split(np.arange(x.shape[-1]), 32):
        for n, image in enumerate(np.asarray(x, np.float64)[..., group]):
            out[n][..., group] = (image - image.mean()) / np.sqrt(image.var() + 1e-5)
    affine = out * np.asarray(gamma, np.float64) + np.asarray(beta, np.float64)
    return affine * (1 + np.asarray(scale, np.float64)) + np.asarray(shift, np.float64)


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_group_norm_equals_the_formula_in_float64(dtype, offset):
    x = (X + offset).astype(dtype)
    gamma, beta, *ada = np.random.default_rng(1).standard_normal((4, 64), np.float32)
    params = {"params": {"scale": gamma, "bias": beta}}
    batch = tuple(jnp.stack([a, -a]) for a in ada)
    plain, adapted = GroupNorm().apply(params, x), GroupNorm().apply(params, x, batch)
    assert (plain.dtype, adapted.dtype) == (jnp.float32, jnp.float32)
    # in bfloat16 the variance is E[x²] − μ²; the rounding of x itself changes results by 2⁻⁹ offset
    tolerance = 1e-5 * max(1, offset)
    relative = 1e-7 * offset**2 if dtype == jnp.bfloat16 else 0
    np.testing.assert_allclose(plain, group_norm(x, gamma, beta), rtol=relative, atol=tolerance)
    expected = group_norm(x, gamma, beta, *(np.asarray(a)[:, None, None] for a in batch))
    np.testing.assert_allclose(adapted, expected, rtol=relative, atol=5 * tolerance)


@pytest.mark.parametrize(("channels", "use"), [(40, "use 32 or 64"), (100, "use 96 or 128"), (16, "use 32")])
def test_the_error_of_group_norm_names_valid_widths(channels, use):
    with pytest.raises(ValueError, match=f"{channels} channels are not divisible by the 32 groups .* {use}"):
        GroupNorm().init(jax.random.key(0), jnp.zeros((1, 2, 2, channels)))


def test_the_time_embedding_is_a_sinusoid_with_the_cosine_first():
    cosine, sine = np.split(time_embedding(jnp.array([0.0, 1.5, 999.75]), 64), 2, axis=-1)
    np.testing.assert_array_equal(cosine[0], 1)
    np.testing.assert_array_equal(sine[0], 0)
    np.testing.assert_allclose(cosine**2 + sine**2, 1, rtol=1e-6)
    np.testing.assert_allclose([cosine[1, 0], sine[1, 0]], [np.cos(1.5), np.sin(1.5)], rtol=1e-6)
    np.testing.assert_allclose(sine[1, 16], np.sin(1.5 / 100), rtol=1e-5)  # half way, 10⁴ to the −1/2
    np.testing.assert_allclose(cosine[2, 1], np.cos(999.75 * 1e4 ** (-1 / 32)), atol=1e-4)


def test_the_time_embedding_is_float32_and_distinguishes_fractions():
    embedded = time_embedding(jnp.array([999.0, 999.25], jnp.float32), 64)
    assert embedded.dtype == jnp.float32
    assert np.abs(embedded[0] - embedded[1]).max() > 0.1


def test_upsampling_repeats_and_downsampling_averages():
    np.testing.assert_allclose(downsample(upsample(X)), X, atol=1e-6)
    np.testing.assert_allclose(downsample(X).mean(axis=(1, 2)), X.mean(axis=(1, 2)), atol=1e-6)
    image = jnp.array([[0.0, 4.0, 1.0, 1.0], [8.0, 0.0, 1.0, 5.0]])[None, :, :, None]
    np.testing.assert_array_equal(downsample(image)[0, :, :, 0], [[3, 2]])
    np.testing.assert_array_equal(upsample(image)[0, 3, :, 0], [8, 8, 0, 0, 1, 1, 5, 5])


def residual(resample="none", features=64, **changes):
    options = dict(dropout=0.0, scale_shift=True, rescale=False, dtype=jnp.dtype("float32"), resample=resample)
    return ResBlock(features, **options | changes)


def attention(**changes):
    return Attention(
        **dict(head_channels=16, legacy_order=True, fused=False, rescale=False, dtype=jnp.dtype("float32")) | changes
    )


@pytest.mark.parametrize(("resample", "skip"), [("none", lambda x: x), ("down", downsample), ("up", upsample)])
def test_a_new_residual_block_equals_its_resampled_skip(resample, skip):
    h, _ = residual(resample).init_with_output(jax.random.key(0), X, EMB, False)
    np.testing.assert_allclose(h, skip(X), atol=1e-6)


def test_a_new_attention_block_is_the_identity():
    h, _ = attention().init_with_output(jax.random.key(0), X)
    np.testing.assert_allclose(h, X, atol=1e-6)


def test_rescaling_divides_by_the_square_root_of_two():
    for block, arguments in ((attention(rescale=True), ()), (residual(rescale=True), (EMB, False))):
        h, _ = block.init_with_output(jax.random.key(0), X, *arguments)
        np.testing.assert_allclose(h, X / np.sqrt(2), atol=1e-6)


@pytest.mark.parametrize("legacy_order", [True, False])
def test_attention_does_not_depend_on_the_order_of_positions(legacy_order):
    block = attention(legacy_order=legacy_order)
    variables = jax.tree.map(lambda p: p + 0.2, block.init(jax.random.key(0), X))
    variables["params"]["proj"]["kernel"] = PROJECTION
    order = np.random.default_rng(0).permutation(24)
    permute = lambda x: x.reshape(2, 24, 64)[:, order].reshape(X.shape)
    np.testing.assert_allclose(
        block.apply(variables, permute(X)), permute(block.apply(variables, X)), rtol=1e-3, atol=1e-3
    )


def test_the_two_attention_orders_differ_by_a_permutation_of_qkv():
    legacy = attention().init(jax.random.key(0), X)
    legacy["params"]["proj"]["kernel"] = PROJECTION
    new = jax.tree.map(lambda p: p, legacy)
    reorder = lambda p: np.moveaxis(np.reshape(p, (*p.shape[:-1], 4, 3, 16)), -2, -3).reshape(p.shape)
    new["params"]["qkv"] = jax.tree.map(reorder, legacy["params"]["qkv"])
    expected = attention().apply(legacy, X)
    np.testing.assert_allclose(attention(legacy_order=False).apply(new, X), expected, atol=1e-4)
    assert np.abs(attention(legacy_order=False).apply(legacy, X) - expected).max() > 0.01


def test_fixed_resampling_has_no_parameters_and_learned_resampling_one_convolution():
    for resample, shape in (("down", (2, 2, 3, 64)), ("up", (2, 8, 12, 64))):
        fixed, learned = (Resample(resample, learn, jnp.dtype("float32")) for learn in (False, True))
        h, variables = fixed.init_with_output(jax.random.key(0), X)
        assert (h.shape, variables) == (shape, {})
        h, variables = jax.eval_shape(learned.init_with_output, jax.random.key(0), X)
        assert (h.shape, list(variables["params"])) == (shape, ["conv"])


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), pytest.param("bfloat16", 0.02, marks=pytest.mark.slow)]
)
def test_fused_attention_equals_plain_attention_in_value_and_gradient(dtype, tolerance):
    rng = np.random.default_rng(0)
    q, k, v, grad = (jnp.asarray(rng.standard_normal((2, 12, 3, 8)), dtype) for _ in range(4))
    results = []
    for attention in (plain_attention, fused_attention):
        found, pull = jax.vjp(attention, q, k, v)
        results.append([np.asarray(a, np.float32) for a in (found, *pull(grad))])
    for fused, plain in zip(*reversed(results), strict=True):
        np.testing.assert_allclose(fused, plain, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("platform", "dtype", "implementation"),
    [("gpu", "bfloat16", "cudnn"), ("gpu", "float32", "xla"), ("tpu", "bfloat16", "xla"), ("cpu", "bfloat16", "xla")],
)
def test_cudnn_attention_is_only_requested_on_gpus_in_16_bits(monkeypatch, platform, dtype, implementation):
    asked = []
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    attention = lambda q, k, v, implementation: asked.append(implementation) or q
    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    fused_attention(*[jnp.zeros((1, 4, 1, 8), dtype)] * 3)
    assert asked == [implementation]
