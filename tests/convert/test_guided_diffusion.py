"""Networks of guided-diffusion give the same numbers here."""

import json
import pathlib

import jax
import numpy as np
import pytest

from cfgjax.convert import guided_diffusion

GOLDENS = sorted((pathlib.Path(__file__).parents[1] / "goldens").glob("unet_*.npz"))


def load(path):
    """(constructor arguments, state dict, {"in/…", "out/…"}) of a golden file."""
    with np.load(path) as file:
        arrays = dict(file)
    config = json.loads(str(arrays.pop("config")))
    state_dict = {key.removeprefix("param/"): arrays.pop(key) for key in list(arrays) if key.startswith("param/")}
    return config, state_dict, arrays


@pytest.fixture(scope="module")
def adm():
    config, state_dict, _ = load(GOLDENS[0])
    return config, state_dict


def test_there_are_three_goldens():
    assert len(GOLDENS) == 3


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_outputs_are_the_reference_implementations(path):
    config, state_dict, arrays = load(path)
    net, params = guided_diffusion.unet(config, state_dict)
    z = arrays["in/x"].transpose(0, 2, 3, 1)
    with jax.default_matmul_precision("highest"):
        out = jax.jit(net.apply)({"params": params}, z, arrays["in/t"], arrays["in/y"].astype(np.int32))
    np.testing.assert_allclose(out.transpose(0, 3, 1, 2), arrays["out/out"], atol=1e-4)


def test_a_missing_key_is_named(adm):
    config, state_dict = adm
    del (state_dict := dict(state_dict))["middle_block.1.qkv.weight"]
    with pytest.raises(ValueError, match=r"without a key: \['middle_1/qkv/kernel'\]; keys unused: \[\]"):
        guided_diffusion.unet(config, state_dict)


def test_an_unused_key_is_named(adm):
    config, state_dict = adm
    extra = state_dict | {"middle_block.7.norm.weight": np.ones(64)}
    with pytest.raises(ValueError, match=r"without a key: \[\]; keys unused: \['middle_block.7.norm.weight'\]"):
        guided_diffusion.unet(config, extra)


def test_a_misshapen_key_is_named_with_both_shapes(adm):
    config, state_dict = adm
    narrow = state_dict | {"out.2.weight": state_dict["out.2.weight"][:3]}
    with pytest.raises(ValueError, match=r"out\.2\.weight has shape \(3, 3, 32, 3\) .* \(3, 3, 32, 6\)"):
        guided_diffusion.unet(config, narrow)


def test_an_unknown_argument_is_named(adm):
    config, state_dict = adm
    with pytest.raises(ValueError, match="not understood: use_magic"):
        guided_diffusion.unet(config | {"use_magic": True}, state_dict)


def test_other_heads_on_the_way_up_are_an_error(adm):
    config, state_dict = adm
    with pytest.raises(ValueError, match="num_heads_upsample is 2, num_heads is 4"):
        guided_diffusion.unet(config | {"num_head_channels": -1, "num_heads": 4, "num_heads_upsample": 2}, state_dict)


def test_arguments_that_change_nothing_are_accepted(adm):
    config, state_dict = adm
    ignored = {"use_checkpoint": True, "use_fp16": True, "dims": 2, "num_heads_upsample": -1}
    assert guided_diffusion.unet(config | ignored, state_dict)[0] == guided_diffusion.unet(config, state_dict)[0]
