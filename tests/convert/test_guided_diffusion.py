"""Networks of guided-diffusion give the same numbers here, and their weights come back as they were."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weight_files import GOLDENS, load

from cfgjax.base.errors import UsageError
from cfgjax.convert import guided_diffusion
from cfgjax.convert.layout import add_null_row, leaves_by_path, shapes_of, with_null_label
from cfgjax.nets import MLP, UNet

UNETS = sorted(GOLDENS.glob("unet_*.npz"))
CLASSIFIERS = sorted(GOLDENS.glob("classifier_*.npz"))
UPSAMPLER = GOLDENS / "superres_unet.npz"
IMPORTS = dict.fromkeys(UNETS, guided_diffusion.unet) | dict.fromkeys(CLASSIFIERS, guided_diffusion.classifier)
IMPORTS[UPSAMPLER] = guided_diffusion.upsampler
FIRST = {UNETS[0], CLASSIFIERS[0]}  # whose outputs are computed by default
EVERY = pytest.mark.parametrize("path", IMPORTS, ids=lambda path: path.stem)


@functools.cache
def imported(path):
    """(module, parameters) of a golden file."""
    config, state_dict, _ = load(path)
    return IMPORTS[path](config, state_dict)


@pytest.fixture(scope="module")
def adm():
    config, state_dict, _ = load(UNETS[0])
    return config, state_dict


def test_there_is_a_golden_of_each_kind_and_pool():
    assert len(UNETS) == 3
    assert {load(path)[0]["pool"] for path in CLASSIFIERS} == set(guided_diffusion.POOLED)


def golden(path):
    return pytest.param(path, marks=() if path in FIRST else pytest.mark.slow, id=path.stem)


def nhwc(array):
    return array.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("path", [golden(path) for path in (*UNETS, UPSAMPLER)])
def test_outputs_are_the_reference_implementations(path):
    (_, _, arrays), (net, params) = load(path), imported(path)
    inputs = {"low_res": nhwc(arrays["in/low_res"])} if "in/low_res" in arrays else {}
    with jax.default_matmul_precision("highest"):
        label = arrays["in/y"].astype(np.int32)
        out = jax.jit(net.apply)({"params": params}, nhwc(arrays["in/x"]), arrays["in/t"], label, **inputs)
    np.testing.assert_allclose(out, nhwc(arrays["out/out"]), atol=1e-4)


@pytest.mark.parametrize("path", [golden(path) for path in CLASSIFIERS])
def test_logits_and_gradients_of_classifiers_are_the_reference_implementations(path):
    (_, _, arrays), (net, params) = load(path), imported(path)

    def log_prob(z):
        logits = net.apply({"params": params}, z, arrays["in/t"])
        return jax.nn.log_softmax(logits)[jnp.arange(len(z)), arrays["in/y"]].sum(), logits

    with jax.default_matmul_precision("highest"):
        gradient, logits = jax.jit(jax.grad(log_prob, has_aux=True))(nhwc(arrays["in/x"]))
    np.testing.assert_allclose(logits, arrays["out/logits"], atol=1e-4)
    np.testing.assert_allclose(gradient, nhwc(arrays["out/grad_log_prob"]), atol=1e-5)


@EVERY
def test_there_and_back_is_the_same_keys_and_bits(path):
    (_, state_dict, _), (net, params) = load(path), imported(path)
    back = guided_diffusion.state_dict(net, params)
    assert back.keys() == state_dict.keys()
    for key, value in state_dict.items():
        assert back[key].dtype == np.float32 and back[key].shape == value.shape, key
        np.testing.assert_array_equal(back[key], value.astype(np.float32), err_msg=key)


@EVERY
def test_back_and_there_is_the_same_parameters(path):
    (config, _, _), (net, params) = load(path), imported(path)
    again = leaves_by_path(
        IMPORTS[path](config, guided_diffusion.state_dict(net, jax.tree.map(jnp.asarray, params)))[1]
    )
    for name, leaf in leaves_by_path(params).items():
        np.testing.assert_array_equal(again.pop(name), leaf, err_msg=str(name))
    assert not again


def test_float32_weights_are_not_copied(adm):
    config, state_dict = adm
    state_dict = {key: value.astype(np.float32) for key, value in state_dict.items()}
    buffers = {value.__array_interface__["data"][0] for value in state_dict.values()}
    _, params = guided_diffusion.unet(config, state_dict)
    assert {leaf.__array_interface__["data"][0] for leaf in jax.tree.leaves(params)} == buffers


def test_a_network_without_classes_is_unconditional(adm):
    config, state_dict = adm
    unlabelled = {key: value for key, value in state_dict.items() if key != "label_emb.weight"}
    net, params = guided_diffusion.unet(config | {"num_classes": None}, unlabelled)
    assert not net.conditional and "label" not in params
    assert guided_diffusion.state_dict(net, params).keys() == unlabelled.keys()


def test_the_null_row_is_the_mean_and_moves_nothing_else(adm):
    config, state_dict = adm
    net, params = guided_diffusion.unet(config, state_dict)
    extended, more = with_null_label(net), add_null_row(params)
    np.testing.assert_array_equal(more["label"][:-1], params["label"])
    np.testing.assert_allclose(more["label"][-1], params["label"].mean(axis=0), atol=1e-6)
    assert jax.tree.map(np.shape, shapes_of(extended, (16, 16, 3))) == jax.tree.map(np.shape, more)
    assert all(more[name] is params[name] for name in params if name != "label")


def test_a_null_row_needs_labels(adm):
    with pytest.raises(UsageError, match="conditional on labels"):
        with_null_label(guided_diffusion.make_unet(adm[0] | {"num_classes": None})[0])


def test_missing_keys_are_named_the_first_ten_of_them(adm):
    config, state_dict = adm
    del (state_dict := dict(state_dict))["middle_block.1.qkv.weight"]
    with pytest.raises(UsageError, match=r"; 1 missing: middle_block\.1\.qkv\.weight\Z"):
        guided_diffusion.unet(config, state_dict)
    few = {key: value for key, value in state_dict.items() if not key.startswith("input_blocks.1.")}
    with pytest.raises(UsageError, match=r"; 11 missing: (input_blocks\.1\.0\.[a-z_.\d]+, ){10}…\Z"):
        guided_diffusion.unet(config, few)


def test_keys_that_are_not_used_are_named(adm):
    config, state_dict = adm
    extra = state_dict | {"middle_block.7.norm.weight": np.ones(64)}
    with pytest.raises(UsageError, match=r"; 1 not used: middle_block\.7\.norm\.weight\Z"):
        guided_diffusion.unet(config, extra)


def test_a_misshapen_key_is_named_with_both_shapes(adm):
    config, state_dict = adm
    narrow = state_dict | {"out.2.weight": state_dict["out.2.weight"][:3]}
    with pytest.raises(
        UsageError, match=r"out\.2\.weight has shape \(3, 32, 3, 3\), but the network needs \(6, 32, 3, 3\)\Z"
    ):
        guided_diffusion.unet(config, narrow)


def test_an_axis_of_length_one_too_few_is_noticed(adm):
    config, state_dict = adm
    flattened = state_dict | {"middle_block.1.qkv.weight": state_dict["middle_block.1.qkv.weight"][..., 0]}
    with pytest.raises(UsageError, match=r"middle_block\.1\.qkv\.weight has shape \(192, 64\)"):
        guided_diffusion.unet(config, flattened)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"use_magic": True}, "UNetModel has no argument use_magic"),
        ({"dropuot": 0.1}, "has no argument dropuot, did you mean 'dropout'?"),
        ({"num_head_channels": -1, "num_heads": 4, "num_heads_upsample": 2}, "num_heads_upsample is 2, num_heads is 4"),
        ({"dims": 3}, "dims is 3"),
        ({"model_channels": 33}, "33 channels are not divisible"),
    ],
)
def test_an_argument_that_is_not_ours_is_named(adm, changed, told):
    config, state_dict = adm
    with pytest.raises(UsageError, match=told):
        guided_diffusion.unet(config | changed, state_dict)


def test_a_missing_argument_is_named(adm):
    config, state_dict = adm
    with pytest.raises(UsageError, match="lack model_channels"):
        guided_diffusion.unet({key: value for key, value in config.items() if key != "model_channels"}, state_dict)


def test_arguments_that_change_nothing_are_accepted(adm):
    config, state_dict = adm
    ignored = {"use_checkpoint": True, "use_fp16": True, "dims": 2, "num_heads_upsample": -1}
    assert guided_diffusion.unet(config | ignored, state_dict)[0] == guided_diffusion.unet(config, state_dict)[0]


def test_a_pool_that_does_not_exist_is_an_error():
    config, state_dict, _ = load(CLASSIFIERS[0])
    with pytest.raises(UsageError, match="unknown pool 'spatial_v3', did you mean 'spatial_v2'?"):
        guided_diffusion.classifier(config | {"pool": "spatial_v3"}, state_dict)


PLAIN = UNet(num_classes=2, out_channels=3, channels=32, multipliers=(1,), depth=1, attention_resolutions=())


@pytest.mark.parametrize(
    ("net", "told"),
    [
        (MLP(num_classes=2, out_channels=2, width=8, depth=1), "no counterpart of the network MLP"),
        (PLAIN.clone(rescale=True), "no network with model.rescale"),
        (PLAIN.clone(low_res=True, low_res_noise=True), "no network with model.low_res_noise"),
    ],
)
def test_a_network_that_they_do_not_have_is_an_error(net, told):
    with pytest.raises(UsageError, match=told):
        guided_diffusion.state_dict(net, {})
