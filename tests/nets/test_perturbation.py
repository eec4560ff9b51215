"""Laws of perturbed self-attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.base.errors import UsageError
from cfgjax.nets.blocks import plain_attention
from cfgjax.nets.mlp import MLP
from cfgjax.nets.perturbation import Perturbation, apply_perturbed, blurred, gaussian_weights
from cfgjax.nets.unet import UNet

NET = dict(out_channels=2, num_classes=3, channels=32, multipliers=(1,), depth=1, attention_resolutions=(4,))
Z = np.random.default_rng(0).standard_normal((4, 4, 4, 2), np.float32)
TIME, LABEL = jnp.array([0.0, 10.0, 500.0, 999.5]), jnp.array([0, 1, 2, 3])
Q = jnp.asarray(np.random.default_rng(1).standard_normal((4, 24, 2, 8), np.float32))  # of a grid 4 × 6


def tiny(**changes):
    return UNet(**NET, head_channels=16, **changes)


@functools.cache
def params():
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(tiny().init, jax.random.key(0), Z, TIME, LABEL)["params"]
    size = lambda path: 1.0 if "qkv" in jax.tree_util.keystr(path) else 0.1  # attention that is far from uniform
    draw = lambda path, leaf: size(path) * rng.standard_normal(leaf.shape, np.float32)
    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.partial(jax.jit, static_argnames=("net", "layers"))
def perturbed(layers, blur, net=None):
    return apply_perturbed(net or tiny(), Perturbation(layers, blur), {"params": params()}, Z, TIME, LABEL)


plain = jax.jit(lambda net: net.apply({"params": params()}, Z, TIME, LABEL), static_argnums=0)


def test_no_blur_is_the_network_itself_bit_for_bit():
    found = perturbed("all", np.float32([0, 0, 1, np.inf]))
    expected = plain(tiny())
    np.testing.assert_array_equal(found[:2], expected[:2])
    assert np.abs(found - expected)[2:].max(axis=(1, 2, 3)).min() > 1e-4


def test_an_infinite_blur_is_the_mean_of_the_queries_and_every_blur_keeps_their_mean_weight():
    mean = jnp.broadcast_to(Q.mean(axis=1, keepdims=True), Q.shape)
    np.testing.assert_allclose(blurred(Q, 4, 6, jnp.inf), mean, atol=1e-6)
    np.testing.assert_allclose(blurred(Q, 4, 6, 1e6), mean, atol=1e-5)
    np.testing.assert_array_equal(blurred(Q, 4, 6, 0.0), Q)
    np.testing.assert_allclose(blurred(Q, 4, 6, 1e-4), Q, atol=1e-6)
    weights = gaussian_weights(6, jnp.array([0.0, 0.5, 2.0, jnp.inf]))
    np.testing.assert_allclose(weights.sum(axis=2), 1.0, rtol=1e-6)
    np.testing.assert_allclose(blurred(jnp.ones_like(Q), 4, 6, 1.5), 1.0, rtol=1e-5)


@pytest.mark.slow
def test_the_blur_of_a_point_is_the_gaussian_of_both_coordinates():
    point = jnp.zeros((1, 81, 1, 8)).at[0, 40].set(1.0)  # the centre of 9 × 9
    found = blurred(point, 9, 9, 0.8)[0, :, 0, 0].reshape(9, 9)
    y, x = np.mgrid[-4:5, -4:5]
    expected = np.exp(-(x**2 + y**2) / (2 * 0.8**2))
    np.testing.assert_allclose(found[2:7, 2:7], (expected / expected.sum())[2:7, 2:7], rtol=1e-3)


def test_equal_queries_attend_equally():
    k, v = Q + 1.0, Q - 1.0
    found = plain_attention(blurred(Q, 4, 6, jnp.inf), k, v)
    np.testing.assert_allclose(found, jnp.broadcast_to(found[:, :1], found.shape), atol=1e-5)


@pytest.mark.slow
def test_attention_that_is_the_identity_passes_the_values_through():
    """Two networks that differ in queries and keys alone are equal then."""
    found = perturbed("all", None)
    changed = jax.tree.map(lambda leaf: leaf, params())
    for name, block in changed.items():
        if "qkv" in block:
            q_and_k = jnp.arange(96) % 48 < 32  # legacy order: q, k, v of each head are adjacent
            changed[name] = {**block, "qkv": {n: jnp.where(q_and_k, 7.0, a) for n, a in block["qkv"].items()}}
    run = jax.jit(lambda params: apply_perturbed(tiny(), Perturbation("all"), {"params": params}, Z, TIME, LABEL))
    np.testing.assert_allclose(run(changed), found, rtol=1e-5, atol=1e-6)
    assert np.abs(found - plain(tiny())).max() > 1e-3


@pytest.mark.slow
def test_layers_select_the_attention_to_perturb():
    outputs = [perturbed(layers, None) for layers in ("middle", "all", 4, (2, 4))]
    middle, every, four, both = outputs
    np.testing.assert_array_equal(every, four)
    np.testing.assert_array_equal(both, four)
    assert np.abs(middle - every).max() > 1e-4
    assert np.abs(middle - plain(tiny())).max() > 1e-4


@pytest.mark.parametrize(
    "changes", [{"fused_attention": True}, {"remat": "blocks"}, {"legacy_attention_order": False}], ids=str
)
@pytest.mark.slow
def test_every_kind_of_attention_can_be_perturbed(changes):
    for blur in (None, 1.0):
        found = perturbed("all", blur, tiny(**changes))
        assert np.abs(found - plain(tiny(**changes))).max() > 1e-4
        if "legacy_attention_order" not in changes:
            np.testing.assert_allclose(found, perturbed("all", blur), atol=1e-4)


def test_a_network_without_the_attention_to_perturb_is_a_one_line_error():
    with pytest.raises(UsageError, match="layers is 16; the network has attention on maps of height 4") as error:
        jax.eval_shape(lambda: perturbed(16, None))
    assert "\n" not in str(error.value)
    mlp = MLP(out_channels=2, num_classes=3, width=8, depth=1)
    points = jnp.zeros((4, 2))
    variables = jax.eval_shape(mlp.init, jax.random.key(0), points, TIME, LABEL)
    with pytest.raises(UsageError, match="the network MLP has no self-attention to perturb"):
        jax.eval_shape(lambda v: apply_perturbed(mlp, Perturbation("all"), v, points, TIME, LABEL), variables)
