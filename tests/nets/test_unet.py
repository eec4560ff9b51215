"""Laws of ADM's U-Net."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.nets.unet import UNet

TINY = dict(out_channels=3, num_classes=4, channels=32, multipliers=(1, 2), depth=1, attention_resolutions=(4,))
TINY |= dict(head_channels=32)
ONE_LEVEL = dict(multipliers=(1,), attention_resolutions=())
Z = np.random.default_rng(0).standard_normal((4, 8, 8, 3), np.float32)
TIME = jnp.array([0.0, 10.0, 500.0, 999.5])
LABEL = jnp.array([0, 1, 3, 4])


def tiny(**changes):
    return UNet(**TINY | changes)


def shapes(net, z=Z):
    return jax.eval_shape(net.init, jax.random.key(0), z, TIME[: len(z)], LABEL[: len(z)])["params"]


def random_params(net, z=Z):
    """Parameters away from initialisation, where the output is zero."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(0.1 * rng.standard_normal(leaf.shape, np.float32))
    return jax.tree.map(draw, shapes(net, z))


@functools.partial(jax.jit, static_argnames=("net", "train"))
def apply(net, params, z=Z, time=TIME, label=LABEL, train=False, key=None):
    return net.apply({"params": params}, z, time, label, train=train, rngs={} if key is None else {"dropout": key})


@pytest.fixture(scope="module")
def params():
    return random_params(tiny())


OPTIONS = [
    {"out_channels": 6},
    {"resblock_resample": False},
    {"resblock_resample": False, "learned_resample": False},
    {"legacy_attention_order": False},
    {"scale_shift": False},
    {"rescale": True},
    {"num_heads": 2, "head_channels": None},
    {"dtype": "bfloat16"},
    {"fused_attention": True},
    {"attention_resolutions": ()},
]


@pytest.mark.parametrize(
    ("changes", "image"),
    [*((changes, (8, 8)) for changes in OPTIONS), *((OPTIONS[i], (4, 12)) for i in (0, 2))],
    ids=str,
)
def test_the_output_is_a_float32_image_under_every_option(changes, image):
    net, z = tiny(**changes), jnp.zeros((2, *image, 3))
    run = lambda: net.init_with_output(jax.random.key(0), z, TIME[:2], LABEL[:2])
    out, variables = jax.eval_shape(run)
    assert out == jax.ShapeDtypeStruct((2, *image, changes.get("out_channels", 3)), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_a_new_network_returns_zero():
    net = tiny(**ONE_LEVEL)
    trained = random_params(net)
    fresh_end = jax.jit(lambda key: net.init(key, Z, TIME, LABEL)["params"]["out_conv"])(jax.random.key(0))
    np.testing.assert_array_equal(apply(net, trained | {"out_conv": fresh_end}), np.zeros(Z.shape))
    assert np.abs(apply(net, trained)).max() > 0.1


@pytest.mark.slow
def test_each_sample_depends_on_its_own_time_and_label(params):
    base = apply(tiny(), params)
    changed = apply(tiny(), params, time=TIME.at[1].add(1.0), label=LABEL.at[2].set(0))
    np.testing.assert_allclose(changed[jnp.array([0, 3])], base[jnp.array([0, 3])], atol=1e-5)
    assert np.abs(changed[1] - base[1]).max() > 1e-3
    assert np.abs(changed[2] - base[2]).max() > 1e-3


def test_the_null_label_is_the_last_row_of_the_embedding(params):
    changed = params | {"label": params["label"].at[4].add(1.0)}
    difference = np.abs(apply(tiny(), changed) - apply(tiny(), params)).max(axis=(1, 2, 3))
    np.testing.assert_array_equal(difference > 1e-3, LABEL == 4)
    assert shapes(tiny(null_label=False))["label"].shape == (4, 128)


def test_without_classes_labels_are_ignored():
    net = tiny(**ONE_LEVEL, conditional=False)
    params = random_params(net)
    assert "label" not in params
    np.testing.assert_array_equal(apply(net, params), apply(net, params, label=LABEL[::-1]))


def test_rescaling_changes_the_output_but_no_parameter():
    plain, rescaled = tiny(**ONE_LEVEL), tiny(**ONE_LEVEL, rescale=True)
    assert shapes(plain) == shapes(rescaled)
    params = random_params(plain)
    assert np.abs(apply(plain, params) - apply(rescaled, params)).max() > 1e-3


def test_attention_is_at_the_requested_resolutions():
    def attended(resolutions):
        blocks = shapes(tiny(conditional=False, attention_resolutions=resolutions))
        return {name for name, block in blocks.items() if "qkv" in block}

    assert attended(()) == {"middle_1"}
    assert attended((4,)) == {"middle_1", "input_3_1", "output_0_1", "output_1_1"}
    assert attended((8,)) == {"middle_1", "input_1_1", "output_2_1", "output_3_1"}


@pytest.mark.slow
def test_bfloat16_gives_nearly_the_same_result(params):
    exact, low = apply(tiny(), params), apply(tiny(dtype="bfloat16"), params)
    assert low.dtype == jnp.float32
    difference = np.linalg.norm(low - exact) / np.linalg.norm(exact)
    assert 1e-4 < difference < 0.05


def equations(jaxpr):
    """Every equation of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def test_bfloat16_stays_out_of_normalisation_and_softmax(params):
    net = tiny(dtype="bfloat16")
    jaxpr = jax.make_jaxpr(lambda params: net.apply({"params": params}, Z, TIME, LABEL))(params)
    dtypes: dict = {}
    for equation in (e for e in equations(jaxpr.jaxpr) if e.invars):
        dtypes.setdefault(equation.primitive.name, set()).add(equation.invars[0].aval.dtype.name)
    assert dtypes["rsqrt"] == dtypes["exp"] == dtypes["reduce_max"] == dtypes["reduce_sum"] == {"float32"}
    assert dtypes["conv_general_dilated"] == dtypes["dot_general"] == {"bfloat16"}


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["blocks", "convolutions"])
def test_rematerialisation_changes_neither_output_nor_gradient(policy):
    plain, remat = (tiny(**ONE_LEVEL, conditional=False, remat=remat) for remat in ("none", policy))
    params = random_params(plain)

    def value_and_grad(net):
        return jax.jit(jax.value_and_grad(lambda params: jnp.square(apply(net, params)).mean()))(params)

    (value, grad), (again, regrad) = value_and_grad(plain), value_and_grad(remat)
    np.testing.assert_allclose(value, again, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), grad, regrad)
    assert shapes(plain) == shapes(remat)
    jaxpr = jax.make_jaxpr(lambda params: apply(remat, params))(params).jaxpr
    blocks = [name for name, block in params.items() if "in_conv" in block or "qkv" in block]
    assert sum("remat" in equation.primitive.name for equation in equations(jaxpr)) == len(blocks)


@pytest.mark.slow
def test_convolutions_whose_results_are_stored_are_not_recomputed(params):
    def convolutions(remat):
        loss = lambda params: jnp.square(apply(tiny(remat=remat), params)).mean()
        names = [equation.primitive.name for equation in equations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)]
        return names.count("conv_general_dilated"), names.count("exp")

    none, kept, blocks = (convolutions(remat) for remat in ("none", "convolutions", "blocks"))
    assert none[0] == kept[0] < blocks[0]
    assert none[1] < kept[1]


def test_an_unknown_policy_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown remat 'block'; known: none, blocks, convolutions"):
        shapes(tiny(remat="block"))


def test_with_full_dropout_only_the_skips_of_the_blocks_remain(params):
    # the second convolution of a block then sees zeros, as if its kernel were zero; the network's own is at the top
    in_block = lambda path: jax.tree_util.keystr(path[1:]) == "['out_conv']['kernel']"
    zeroed = lambda path, leaf: 0 * leaf if in_block(path) else leaf
    silent = jax.tree_util.tree_map_with_path(zeroed, params)
    dropped = apply(tiny(dropout=1.0), params, train=True, key=jax.random.key(0))
    np.testing.assert_allclose(dropped, apply(tiny(), silent), atol=1e-4)


def test_dropout_acts_only_in_training():
    net = tiny(**ONE_LEVEL, dropout=0.5)
    params = random_params(net)
    np.testing.assert_allclose(apply(net, params), apply(tiny(**ONE_LEVEL), params), atol=1e-5)
    first, again, other = (apply(net, params, train=True, key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"multipliers": (1, 1, 1, 1, 1)}, "8×8 cannot be halved 4 times, .* need multiples of 16"),
        ({"channels": 48}, "48 channels are not divisible by the 32 groups"),
        ({"head_channels": 24}, "head_channels 24 does not divide the 64 channels of the 4×4 maps"),
        ({"head_channels": None, "num_heads": 5}, "num_heads 5 does not divide the 64 channels of the 4×4 maps"),
        ({"num_heads": 2}, "num_heads is 2, head_channels is 32: set exactly one"),
        ({"head_channels": None}, "num_heads is None, head_channels is None: set exactly one"),
    ],
)
def test_sizes_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        shapes(tiny(**changes))


@pytest.mark.parametrize("image", [(7, 8), (8, 6, 3)])
def test_each_side_must_be_divisible(image):
    with pytest.raises(ValueError, match="cannot be halved 2 times"):
        shapes(tiny(multipliers=(1, 1, 1)), jnp.zeros((1, *image[:2], 3)))
