"""The Inception network gives the numbers of independent implementations; the weights are drawn, not downloaded."""

import functools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.base.errors import UsageError
from cfgjax.base.weights import read_state_dict
from cfgjax.nets import inception

pytestmark = pytest.mark.optimised  # computing takes longer than compiling

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
KEYS = {key: tuple(shape) for key, shape in json.loads((GOLDENS / "inception_keys.json").read_text())}
COUNTED = {key for key in KEYS if key.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def state_dict():
    """The weights with which the goldens were computed."""
    rng = np.random.default_rng(0)

    def draw(key, shape):
        if key in COUNTED:
            return np.zeros(shape)
        if key.endswith("conv.weight"):
            return rng.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)
        if key == "fc.weight":
            return rng.normal(0, 1 / math.sqrt(shape[1]), shape)
        if key.endswith(("bn.weight", "running_var")):
            return rng.uniform(0.8, 1.2, shape)
        return rng.normal(0, 0.1, shape)

    return {key: draw(key, KEYS[key]).astype(np.float32) for key in sorted(KEYS)}


@pytest.fixture(scope="module")
def features(state_dict):
    return inception.load(state_dict)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDENS / "inception.npz") as file:
        return dict(file)


def images(size):
    return np.random.default_rng(size).integers(0, 256, (2, size, size, 3)).astype(np.uint8)


@pytest.mark.parametrize("size", [32, pytest.param(64, marks=pytest.mark.slow)])
def test_features_equal_those_of_the_reference_implementation(features, state_dict, golden, size):
    out = features(images(size))
    for name, ours in [("pool3", "pool3"), ("spatial", "spatial"), ("logits_unbiased", "logits")]:
        assert out[ours].dtype == jnp.float32
        np.testing.assert_allclose(out[ours], golden[f"{name}_{size}"], rtol=1e-4, atol=3e-5, err_msg=name)
    bias = inception.parameters(state_dict)["fc"]["bias"]
    np.testing.assert_allclose(out["logits"] + bias, golden[f"logits_{size}"], rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("size", [32, 64])
def test_images_are_resized_as_by_tensorflow(golden, size):
    resized = inception.resized(images(size), "tf1")
    np.testing.assert_allclose(resized[0, ::13, ::13], golden[f"resized_{size}"], rtol=1e-4)


@pytest.mark.parametrize("shape", [(32, 48), (299, 320), (1, 2)])
def test_half_pixel_equals_the_resize_of_jax(shape):
    image = np.random.default_rng(0).integers(0, 256, (2, *shape, 3)).astype(np.uint8)
    expected = jax.image.resize(image.astype(np.float32), (2, 299, 299, 3), "linear", antialias=False)
    np.testing.assert_allclose(
        inception.resized(image, "half_pixel"), expected, atol=0.03
    )  # of 255; JAX has float32 coordinates


@pytest.mark.parametrize("resize", inception.RESIZES)
def test_an_image_of_the_right_size_is_not_resized(resize):
    image = images(299)
    np.testing.assert_array_equal(inception.resized(image, resize), image)


def test_grey_images_become_three_equal_channels():
    grey = images(40)[..., :1]
    np.testing.assert_array_equal(inception.resized(grey, "tf1"), inception.resized(grey.repeat(3, axis=3), "tf1"))


def test_each_row_of_features_belongs_to_its_image(features):
    batch = images(32)
    for name, value in features(batch).items():
        np.testing.assert_allclose(features(batch[::-1])[name], value[::-1], rtol=1e-5, atol=1e-5, err_msg=name)


def test_matrix_products_use_the_highest_precision_whatever_the_default(state_dict):
    with jax.default_matmul_precision("bfloat16"):
        text = jax.jit(inception.apply).lower(inception.parameters(state_dict), images(32)).as_text()
    products = [line for line in text.splitlines() if "stablehlo.convolution" in line or "dot_general" in line]
    assert len(products) == 94 + 3
    assert all(line.count("HIGHEST") == 2 for line in products)


def test_keys_and_shapes_equal_those_of_pytorch():
    assert inception.shapes() == {key: shape for key, shape in KEYS.items() if key not in COUNTED}


def test_weights_of_an_npz_are_the_same_parameters(state_dict, tmp_path):
    np.savez(tmp_path / "weights.npz", **state_dict)
    ours, theirs = inception.parameters(read_state_dict(tmp_path / "weights.npz")), inception.parameters(state_dict)
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))
    with pytest.raises(UsageError, match="cannot read"):
        inception.load(tmp_path / "other.npz")


def test_counts_of_batches_are_optional(state_dict):
    without = {key: value for key, value in state_dict.items() if key not in COUNTED}
    ours, theirs = inception.parameters(without), inception.parameters(state_dict)
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))


def changed(state_dict, **changes):
    """state_dict with changes, None for a key to leave out; `__` stands for a dot."""
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in (state_dict | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"Mixed_6d__branch1x1__bn__bias": None},
            r"1 key \(Mixed_6d\.branch1x1\.bn\.bias\) missing, 0 keys unexpected",
        ),
        ({"AuxLogits__fc__bias": np.ones(1000)}, r"0 keys missing, 1 key \(AuxLogits\.fc\.bias\) unexpected"),
        ({"fc__bn__num_batches_tracked": np.zeros(())}, r"1 key \(fc\.bn\.num_batches_tracked\) unexpected"),
        ({f"a{i}": np.ones(1) for i in range(5)}, r"0 keys missing, 5 keys \(a0, a1, a2, …\) unexpected"),
        ({"fc__weight": np.ones((1000, 2048))}, r"fc\.weight has shape \(1000, 2048\), not \(1008, 2048\)"),
        ({"fc__bias": np.full(1008, np.nan)}, r"not finite, or variances below 0: 1 key \(fc\.bias\)"),
        ({"fc__bias": np.full(1008, "words")}, r"not finite, or variances below 0: 1 key \(fc\.bias\)"),
        ({"Conv2d_1a_3x3__bn__running_var": -np.ones(32)}, r"below 0: 1 key \(Conv2d_1a_3x3\.bn\.running_var\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(state_dict, changes, told):
    with pytest.raises(UsageError, match=told):
        inception.parameters(changed(state_dict, **changes))


@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((2, 32, 32, 3), np.float32),
        np.zeros((2, 32, 32, 4), np.uint8),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((2, 0, 32, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_batch_of_pictures_are_reported(features, batch):
    with pytest.raises(UsageError, match=r"images have dtype .* and shape .*; need uint8 \[N, H, W, 3\]"):
        features(batch)


def test_an_unknown_resize_is_reported_before_any_work(state_dict):
    with pytest.raises(UsageError, match="unknown resize 'bicubic'"):
        inception.load(state_dict, resize="bicubic")


def test_apply_takes_parameters_as_an_argument_of_jit(state_dict):
    like = jax.eval_shape(lambda: inception.parameters(state_dict))
    run = functools.partial(inception.apply, resize="half_pixel")
    out = jax.eval_shape(run, like, jax.ShapeDtypeStruct((5, 28, 28, 1), jnp.uint8))
    assert {name: value.shape for name, value in out.items()} == {
        "pool3": (5, 2048),
        "logits": (5, 1008),
        "spatial": (5, 2023),
    }
