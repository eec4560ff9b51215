"""Networks of diffusers give the same numbers here, and those that are not ADM's are refused."""

import json

import jax
import numpy as np
import pytest
from weight_files import GOLDENS, load

from cfgjax.base.errors import UsageError
from cfgjax.convert import diffusers
from cfgjax.convert.layout import params_from_state_dict

PATHS = sorted(GOLDENS.glob("diffusers_unet_*.npz"))
ADM, CONV = PATHS
ATTENDED = {"down_block_types": ["AttnDownBlock2D"] * 2, "up_block_types": ["AttnUpBlock2D"] * 2}


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_outputs_are_the_reference_implementations(path):
    config, state_dict, arrays = load(path)
    net, params = diffusers.unet(config, state_dict)
    z, label = arrays["in/x"].transpose(0, 2, 3, 1), arrays["in/y"].astype(np.int32)
    with jax.default_matmul_precision("highest"):
        out = jax.jit(net.apply)({"params": params}, z, arrays["in/t"], label)
    np.testing.assert_allclose(out.transpose(0, 3, 1, 2), arrays["out/out"], atol=1e-4)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_key_is_used_once(path):
    config, state_dict, _ = load(path)
    net, params = diffusers.unet(config, state_dict)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == sum(value.size for value in state_dict.values())
    for key in state_dict:
        with pytest.raises(UsageError, match=f"1 missing: {key}"):
            params_from_state_dict({k: v for k, v in state_dict.items() if k != key}, params, diffusers.slots(net))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "_class_name 'UNet2DConditionModel'; accepted: 'UNet2DModel'"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type 'fourier'"),
        ({"flip_sin_to_cos": False}, "flip_sin_to_cos False"),
        ({"freq_shift": 1}, "freq_shift 1; accepted: 0"),
        ({"norm_eps": 1e-6}, "norm_eps 1e-06"),
        ({"norm_num_groups": 16}, "norm_num_groups 16"),
        ({"attn_norm_num_groups": None}, "attn_norm_num_groups None; accepted with 'scale_shift': 32"),
        ({"class_embed_type": "timestep"}, "class_embed_type 'timestep'"),
        ({"center_input_sample": True}, "center_input_sample True"),
        ({"add_attention": False}, "add_attention False"),
        ({"mid_block_scale_factor": 1.4}, "mid_block_scale_factor 1.4"),
        ({"act_fn": "gelu"}, "act_fn 'gelu'"),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift 'spatial'"),
        ({"out_channels": 4}, "out_channels 4; accepted: 3, or 6 with learned variance"),
        ({"down_block_types": ["SkipDownBlock2D", "AttnDownBlock2D"]}, "down_block_types with 'SkipDownBlock2D'"),
        ({"up_block_types": ["ResnetUpsampleBlock2D"] * 2}, "up_block_types that are not down_block_types reversed"),
        ({"up_block_types": ["AttnUpBlock2D"]}, "of different lengths"),
        ({"upsample_type": "conv"}, "resample in different ways"),
        (ATTENDED | {"downsample_type": "k"}, "downsample_type or upsample_type 'k'"),
        ({"sample_size": None}, "sample_size None; need one number, the height and width"),
        ({"sample_size": [16, 32]}, r"sample_size \[16, 32\]"),
        ({"encoder_hid_dim": 3}, "the unknown key encoder_hid_dim"),
        ({"block_out_channels": None}, "config.json is not that of a UNet2DModel"),
        ({"block_out_channels": [40, 64]}, "40 channels are not divisible"),
    ],
)
def test_a_config_of_another_network_is_refused_by_its_key(changed, told):
    config, state_dict, _ = load(ADM)
    with pytest.raises(UsageError, match=told):
        diffusers.unet(config | changed, state_dict)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"layers_per_block": 10**9}, "layers_per_block 1000000000, but the weights have 1"),
        ({"layers_per_block": 3}, r"\d+ missing: .*; config.json has layers_per_block 3, but the weights have 1"),
        ({"layers_per_block": 0}, "layers_per_block 0; need at least 1"),
        ({"layers_per_block": -1}, "layers_per_block -1; need at least 1"),
        ({"layers_per_block": "2"}, "its 'layers_per_block' is a string, not an integer"),
        ({"layers_per_block": True}, "its 'layers_per_block' is a boolean"),
        ({"layers_per_block": 1.0}, "its 'layers_per_block' is a number"),
        ({"layers_per_block": [1]}, "its 'layers_per_block' is a list"),
        ({"block_out_channels": [0, 64]}, r"block_out_channels \[0, 64\]; need at least 1"),
        ({"block_out_channels": [-32, 64]}, r"block_out_channels \[-32, 64\]; need at least 1"),
        (
            {"block_out_channels": [32, 10**12]},
            r"block_out_channels \[32, 1000000000000\], but the weights have \[32, 64\]",
        ),
        (
            {"block_out_channels": [64, 64]},
            r"has shape .*the network needs .*block_out_channels \[64, 64\], but the weights",
        ),
        ({"block_out_channels": [32, "64"]}, "an entry of its 'block_out_channels' is a string"),
        ({"block_out_channels": {}}, "its 'block_out_channels' is an object"),
        ({"block_out_channels": [], "down_block_types": [], "up_block_types": []}, "empty down_block_types"),
        ({"in_channels": 10**9, "out_channels": 10**9}, "in_channels 1000000000, but the weights have 3"),
        ({"attention_head_dim": 0}, "attention_head_dim 0; need at least 1"),
        ({"attention_head_dim": 10**30}, "attention_head_dim 10"),
        ({"attention_head_dim": 24}, "head_channels 24 does not divide the 64 channels"),
        ({"sample_size": 10**9}, "sample_size 1000000000; need a height in 1 … 65536"),
        ({"sample_size": 0}, "sample_size 0; need a height"),
        ({"sample_size": [16, 16.0]}, "an entry of its 'sample_size' is a number"),
        ({"num_class_embeds": 10**9}, "num_class_embeds 1000000000, but the weights have 5"),
        (
            {"num_class_embeds": 6},
            r"class_embedding\.weight has shape \(5, 128\), but the network needs \(6, 128\); .*embeds 6",
        ),
        ({"num_class_embeds": None}, "num_class_embeds None, but the weights have 5"),
        ({"dropout": "high"}, "its 'dropout' is a string, not a number"),
        ({"dropout": float("nan")}, "dropout nan; need a value in 0 … 1"),
        ({"down_block_types": [["x"], "y"]}, "an entry of its 'down_block_types' is a list"),
        ({"act_fn": ["s" * 10**6]}, "act_fn .{1,110}; accepted: 'silu'"),
    ],
)
def test_sizes_are_checked_against_the_weights_before_anything_is_built(changed, told):
    config, state_dict, _ = load(ADM)
    with pytest.raises(UsageError, match=rf"\A[^\n]*{told}[^\n]*\Z"):
        diffusers.unet(config | changed, state_dict)


@pytest.mark.parametrize("changed", [{"layers_per_block": 10**9}, {"block_out_channels": [10**12, 10**12]}])
def test_sizes_are_checked_even_if_the_weights_are_of_something_else(changed):
    config, _, _ = load(ADM)
    with pytest.raises(UsageError):
        diffusers.unet(config | changed, {"weight": np.zeros((3, 3), np.float32)})


def test_keys_with_defaults_may_be_absent():
    config, state_dict, _ = load(CONV)
    short = {key: value for key, value in config.items() if key in diffusers.DEFAULTS}
    assert diffusers.unet(short, state_dict)[0] == diffusers.unet(config, state_dict)[0]


@pytest.mark.parametrize("width", [96, 160, 224, 352, 416, 608, 736])
def test_widths_are_whole_whatever_their_ratio(width):
    for channels in (96, 160, 192, 224, 352, 416):
        assert int(diffusers.multiplier(width, channels) * channels) == width


SCHEDULER = {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}


def process(tmp_path, scheduler):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return diffusers.process(tmp_path / "unet")


def test_the_scheduler_beside_the_network_tells_its_process(tmp_path):
    assert process(tmp_path, SCHEDULER | {"num_train_timesteps": 1000, "clip_sample": True}) == ("linear", 1000, 0.0)


def test_without_a_scheduler_the_process_is_adms(tmp_path):
    assert diffusers.process(tmp_path / "unet") == ("linear", 1000, 0.0)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"beta_end": 0.012}, "has beta_end 0.012; accepted: 0.02"),
        ({"num_train_timesteps": "all"}, "has num_train_timesteps 'all'; need an integer"),
        ({"num_train_timesteps": 10**12}, "has num_train_timesteps 1000000000000; need an integer in 2 …"),
        ({"num_train_timesteps": True}, "has num_train_timesteps True"),
        ({"num_train_timesteps": 4000}, "has beta_start 0.0001; accepted: 2.5e-05"),
        ({"beta_schedule": "scaled_linear"}, "has beta_schedule 'scaled_linear'; accepted: linear, squaredcos_cap_v2"),
        ({"variance_type": "learned"}, "has variance_type 'learned'"),
        ({"trained_betas": [0.1]}, r"has trained_betas \[0.1\]; accepted: none"),
        ({"rescale_betas_zero_snr": True}, "has rescale_betas_zero_snr True"),
    ],
)
def test_a_process_that_is_not_ours_is_refused_by_its_key(tmp_path, changed, told):
    with pytest.raises(UsageError, match=told):
        process(tmp_path, SCHEDULER | changed)


@pytest.mark.parametrize(
    ("given", "predicted"),
    [
        ({}, "eps"),
        ({"prediction_type": None}, "eps"),
        ({"prediction_type": "epsilon"}, "eps"),
        ({"prediction_type": "v_prediction"}, "v"),
        ({"prediction_type": "sample"}, "x"),
    ],
)
def test_what_the_network_predicts_is_read_from_the_scheduler(tmp_path, given, predicted):
    assert diffusers.parametrisation(tmp_path / "unet") == "eps"
    process(tmp_path, SCHEDULER | given)
    assert diffusers.parametrisation(tmp_path / "unet") == predicted


def test_another_prediction_is_refused(tmp_path):
    process(tmp_path, SCHEDULER | {"prediction_type": "flow"})
    with pytest.raises(UsageError, match="has prediction_type 'flow'; accepted: epsilon, v_prediction, sample"):
        diffusers.parametrisation(tmp_path / "unet")
