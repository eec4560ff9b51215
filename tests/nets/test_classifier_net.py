"""Laws of the classifier of noisy images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.nets.blocks import AttentionPool
from cfgjax.nets.classifier import POOLS, NoisyClassifier

TINY = dict(num_classes=5, channels=32, multipliers=(1, 2), depth=1, attention_resolutions=(4,), head_channels=32)
ONE_LEVEL = dict(channels=64, multipliers=(1,), attention_resolutions=())  # 64: of one channel, a group's mean is fixed
Z = jax.random.normal(jax.random.key(0), (3, 8, 8, 3))
TIME = jnp.array([0.0, 500.0, 999.5])
every_pool = pytest.mark.parametrize("pool", POOLS)


def tiny(**changes):
    return NoisyClassifier(**TINY | changes)


def shapes(net, z=Z):
    return jax.eval_shape(net.init, jax.random.key(0), z, TIME[: len(z)])["params"]


def random_params(net):
    """Parameters away from initialisation, where the mean pool's output is zero; norms scale by about one."""
    rng = np.random.default_rng(0)
    draw = lambda path, leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32) + (path[-1].key == "scale")
    return jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(draw, shapes(net)))


@functools.partial(jax.jit, static_argnames=("net", "train"))
def apply(net, params, z=Z, time=TIME, train=False, key=None):
    return net.apply({"params": params}, z, time, train=train, rngs={} if key is None else {"dropout": key})


@every_pool
@pytest.mark.parametrize(("dtype", "image"), [("float32", (8, 8)), ("bfloat16", (4, 12))])
def test_every_pool_gives_float32_logits(pool, dtype, image):
    net, z = tiny(pool=pool, dtype=dtype), jnp.zeros((3, *image, 3))
    out, variables = jax.eval_shape(lambda: net.init_with_output(jax.random.key(0), z, TIME))
    assert out == jax.ShapeDtypeStruct((3, 5), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["attention", "spatial"])
def test_each_sample_depends_on_its_own_image_and_time(pool):
    net = tiny(**ONE_LEVEL, pool=pool)
    params = random_params(net)
    base = apply(net, params)
    for changed in (apply(net, params, time=TIME.at[0].add(1.0)), apply(net, params, z=Z.at[0].add(1.0))):
        np.testing.assert_allclose(changed[1:], base[1:], rtol=1e-4, atol=1e-5)
        assert np.abs(changed[0] - base[0]).max() > 1e-3


def test_a_new_mean_pool_gives_equal_logits():
    net = tiny(**ONE_LEVEL, pool="adaptive")
    trained = random_params(net)
    fresh = jax.jit(lambda key: net.init(key, Z, TIME)["params"]["pool"])(jax.random.key(0))
    np.testing.assert_array_equal(apply(net, trained | {"pool": fresh}), np.zeros((3, 5)))


def test_the_spatial_pools_depend_on_the_maps_of_every_block():
    # input convolution, a block, a halving block, a block, and the middle: 32, 32, 32, 64, 64 channels
    for pool in ("spatial", "spatial_v2"):
        params = shapes(tiny(pool=pool))
        assert params["pool_0"]["kernel"].shape == (32 + 32 + 32 + 64 + 64, 2048)
        assert "out_norm" not in params and ("pool_norm" in params) == (pool == "spatial_v2")


POOL = AttentionPool(head_channels=16, features=5)
init_pool = jax.jit(lambda x: POOL.init(jax.random.key(0), x)["params"])
attend_pool = jax.jit(lambda params, x: POOL.apply({"params": params}, x))


def test_an_attention_pool_with_uniform_weights_gives_the_value_of_the_mean():
    x = jax.random.normal(jax.random.key(1), (2, 3, 4, 32))
    params = init_pool(x)
    assert params["position"].shape == (13, 32)
    kernel = params["qkv"]["kernel"].at[:, :64].set(0)  # of q and k, which come before v
    params = params | {"qkv": params["qkv"] | {"kernel": kernel}}
    mean = x.mean(axis=(1, 2)) + params["position"].mean(axis=0)
    expected = mean @ kernel[:, 64:] @ params["proj"]["kernel"]
    np.testing.assert_allclose(attend_pool(params, x), expected, rtol=1e-4, atol=1e-5)


def test_the_attention_pool_depends_on_positions():
    x = jax.random.normal(jax.random.key(1), (2, 3, 4, 32))
    params = init_pool(x)
    assert np.abs(attend_pool(params, x[:, ::-1]) - attend_pool(params, x)).max() > 1e-3
    blind = params | {"position": jnp.zeros((13, 32))}
    np.testing.assert_allclose(attend_pool(blind, x[:, ::-1]), attend_pool(blind, x), rtol=1e-4, atol=1e-5)


def test_dropout_acts_only_in_training():
    net = tiny(**ONE_LEVEL, dropout=0.5)
    params = random_params(net)
    apply(net, params)  # without a key to draw from
    first, again, other = (apply(net, params, train=True, key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": "max"}, "unknown pool 'max'; known: adaptive, attention, spatial, spatial_v2"),
        ({"head_channels": None, "num_heads": 2}, "the attention pool needs head_channels, not num_heads"),
        ({"multipliers": (1, 1, 1, 1, 1)}, "8×8 cannot be halved 4 times"),
        ({"attention_resolutions": (16,)}, r"attention_resolutions has 16; the maps are \[8, 4\] high"),
    ],
)
def test_an_invalid_classifier_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        shapes(tiny(**changes))
