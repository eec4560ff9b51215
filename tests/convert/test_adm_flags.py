"""guided-diffusion's flags describe the networks that its scripts build, and the weights say which flag is wrong."""

import json

import numpy as np
import pytest
from weight_files import GOLDENS, load, save_pt, save_safetensors

import cfgjax
from cfgjax.base.errors import UsageError
from cfgjax.cli import main as cli
from cfgjax.convert import guided_diffusion
from cfgjax.convert.adm_flags import explained, preset_of
from cfgjax.convert.adm_sizes import derived_arguments
from cfgjax.convert.presets import Preset
from cfgjax.models.network import make_network
from cfgjax.runs.averages import load_params
from cfgjax.runs.workdir import read_settings

FLAGS = {
    "image_size": 16,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,2",
    "attention_resolutions": "8",
    "num_heads": 1,
    "num_head_channels": 32,
    "class_cond": True,
    "learn_sigma": True,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}
PLAIN = FLAGS | {"use_new_attention_order": "true", "num_head_channels": 16}
PLAIN |= {"use_scale_shift_norm": "False", "resblock_updown": "0"}
UPSAMPLER = {**FLAGS, "large_size": 16, "small_size": 8, "num_heads": 4, "num_head_channels": -1}
NETWORKS = {
    "unet_adm": FLAGS,
    "unet_new_attention_plain": PLAIN,
    "unet_heads4_legacy_attention": FLAGS | {"num_res_blocks": 2, "num_heads": 4, "num_head_channels": -1},
    "superres_unet": UPSAMPLER,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_flags_of_a_network_are_its_arguments(name):
    config, state_dict, _ = load(GOLDENS / f"{name}.npz")
    preset = preset_of(NETWORKS[name], state_dict)
    assert preset.kind == ("upsampler" if name == "superres_unet" else "unet")
    expected = guided_diffusion.MAKERS[preset.kind](config)
    assert guided_diffusion.MAKERS[preset.kind](preset.arguments) == expected
    assert not explained(preset, state_dict)


KINDS = {"unet": "unet", "superres": "upsampler", "classifier": "classifier"}
GOLDEN = [path for name in KINDS for path in sorted(GOLDENS.glob(f"{name}_*.npz"))]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_sizes_that_are_derived_from_the_weights_are_those_of_the_network(path):
    config, state_dict, _ = load(path)
    kind = KINDS[path.stem.partition("_")[0]]
    found = derived_arguments(state_dict)
    assert (found["kind"], found["model_channels"], found["out_channels"]) == (kind, 32, config["out_channels"])
    assert not explained(Preset(kind, config), state_dict)
    if kind == "classifier":
        assert found["pool"] == config["pool"]
    else:
        assert (found["num_res_blocks"], found["channel_mult"]) == (config["num_res_blocks"], (1, 2))


def test_a_classifier_is_seen_in_its_weights_and_has_flags_of_its_own():
    config, state_dict, _ = load(GOLDENS / "classifier_attention_pool.npz")
    flags = {"image_size": "16", "channel_mult": "1,2", "classifier_attention_resolutions": "8"}
    preset = preset_of(flags | {"classifier_width": 32, "classifier_depth": 1}, state_dict)
    assert preset.arguments == config | {"channel_mult": (1, 2), "attention_resolutions": (2,), "num_head_channels": 64}
    assert preset == preset_of(flags | {"channels": 32, "depth": 1}, state_dict)
    wrong = preset_of(flags | {"depth": 2}, state_dict)
    assert "--classifier_width is 128, but the weights have 32" in explained(wrong, state_dict)
    assert "--classifier_depth and --channel_mult make 6 input blocks, not 4" in explained(wrong, state_dict)


def test_defaults_are_those_of_guided_diffusion():
    preset = preset_of({}, {})
    assert preset.arguments == {
        "image_size": 64,
        "in_channels": 3,
        "model_channels": 128,
        "num_res_blocks": 2,
        "attention_resolutions": (4, 8),
        "channel_mult": (1, 2, 3, 4),
        "use_scale_shift_norm": True,
        "resblock_updown": False,
        "out_channels": 3,
        "num_classes": None,
        "dropout": 0.0,
        "num_heads": 4,
        "num_heads_upsample": -1,
        "num_head_channels": -1,
        "use_new_attention_order": False,
    }
    assert preset.v == 1.0  # sigma_small is False
    assert (preset.betas, preset.num_timesteps) == ("linear", 1000)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"num_channels": 64}, "num_channels is 64, but the weights have 32"),
        ({"num_res_blocks": 10**4}, "num_res_blocks is 10000, but the weights have 1"),
        ({"num_res_blocks": 3}, r"\d+ missing.*num_res_blocks is 3, but the weights have 1"),
        ({"channel_mult": "1,3"}, r"has shape .*, but the network needs .*_mult is 1,3, but the weights have 1,2"),
        ({"channel_mult": "1"}, "channel_mult is 1, but the weights have 1,2"),
        ({"attention_resolutions": "16,8"}, "attention_resolutions is 16,8, but the weights have 8"),
        ({"attention_resolutions": ""}, "attention_resolutions is empty, but the weights have 8"),
        ({"class_cond": False}, "not used: label_emb.weight.*class_cond is false, but the weights have true"),
        ({"num_classes": 6}, r"label_emb\.weight has shape \(5, 128\).*num_classes is 6, but the weights have 5"),
        (
            {"learn_sigma": False},
            r"out\.2\.bias has shape \(6,\), but .* needs \(3,\).*learn_sigma is false, but the weights have true",
        ),
        ({"use_scale_shift_norm": False}, "use_scale_shift_norm is false, but the weights have true"),
        ({"image_size": 15}, "cannot be halved"),
    ],
)
def test_the_flag_that_explains_another_shape_is_named(changed, expected, tmp_path):
    state_dict = load(GOLDENS / "unet_adm.npz")[1]
    save_pt(tmp_path / "x.pt", {key: value.astype(np.float32) for key, value in state_dict.items()})
    with pytest.raises(UsageError, match=rf"\A[^\n]*({expected})[^\n]*\Z"):
        convert(tmp_path, "x.pt", FLAGS | changed)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def convert(folder, name, flags, *others):
    words = [f"--{key}={value}" for key, value in flags.items()]
    return cli.run_command(
        ["convert", "openai-adm", f"--checkpoint={folder / name}", f"--out={folder / 'run'}", *words, *others]
    )


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("num_channels", "0", "need an integer in 1"),
        ("num_channels", "-32", "need an integer in 1"),
        ("num_channels", "1e3", "need an integer in 1"),
        ("num_channels", 10**12, "need an integer in 1"),
        ("num_channels", 32.0, "need an integer in 1"),
        ("num_channels", True, "need an integer in 1"),
        ("num_channels", [32], "need an integer in 1"),
        ("num_channels", {"a": 1}, "need an integer in 1"),
        ("channel_mult", "1,x", "need a number in"),
        ("channel_mult", "0,1", "need a number in"),
        ("channel_mult", [1, None], "need a number in"),
        ("channel_mult", "nan", "need a number in"),
        ("attention_resolutions", "0", "need an integer in 1"),
        ("attention_resolutions", "128", "the images are 64 high"),
        ("dropout", "1.5", "need a number in 0 … 1"),
        ("dropout", float("nan"), "need a number in 0 … 1"),
        ("learn_sigma", "maybe", "need true or false"),
        ("learn_sigma", 2, "need true or false"),
        ("noise_schedule", "sqrt", "need one of linear, cosine"),
        ("noise_schedule", ["linear"], "need one of linear, cosine"),
        ("diffusion_steps", 1, "need an integer in 2"),
        ("diffusion_steps", 10**12, "need an integer in 2"),
        ("predict_xstart", True, "predicts the noise"),
        ("image_size", 32, "channel_mult must be given for 32×32 images"),
        ("num_chanels", 32, "no flag 'num_chanels', did you mean 'num_channels'"),
    ],
)
def test_a_value_that_does_not_fit_is_reported_in_one_line(flag, value, expected):
    with pytest.raises(UsageError, match=rf"\A[^\n]*{expected}[^\n]*\Z"):
        preset_of({flag: value}, {})


def test_timesteps_that_were_rescaled_are_refused_unless_they_are_1000():
    assert preset_of({"rescale_timesteps": True}, {}) == preset_of({}, {})
    with pytest.raises(UsageError, match="rescale_timesteps is true with 4000"):
        preset_of({"rescale_timesteps": True, "diffusion_steps": 4000}, {})


def test_flags_of_training_change_nothing():
    assert preset_of({"lr": 1e-4, "use_fp16": True, "ema_rate": "0.9999", "timestep_respacing": ""}, {}) == preset_of(
        {}, {}
    )


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """A folder with unet_adm as x.pt, under `module.` and next to its average."""
    folder = tmp_path_factory.mktemp("golden")
    state_dict = {key: value.astype(np.float32) for key, value in load(GOLDENS / "unet_adm.npz")[1].items()}
    other = {f"module.{key}": value + 1 for key, value in state_dict.items()}
    save_pt(folder / "x.pt", {"model": other, "ema": state_dict, "step": 3})
    return folder, state_dict


@pytest.mark.parametrize("how", ["flags", "json", "json and flags", "aliases"])
def test_a_network_of_ones_own_becomes_a_workdir(golden, how, tmp_path, capsys):
    folder, state_dict = golden
    (tmp_path / "x.pt").symlink_to(folder / "x.pt")
    flags, others = FLAGS | {"diffusion_steps": 400, "noise_schedule": "cosine"}, []
    if how == "aliases":
        flags["channels"], flags["depth"] = flags.pop("num_channels"), flags.pop("num_res_blocks")
    if how.startswith("json"):
        content = flags | ({"num_channels": 64, "lr": 1e-4} if how == "json and flags" else {})
        (tmp_path / "flags.json").write_text(json.dumps(content))
        others = [f"--model_flags={tmp_path / 'flags.json'}", "--num_channels=32"][: 1 + (how == "json and flags")]
        flags = {}
    assert convert(tmp_path, "x.pt", flags, *others) == 0
    assert "took ema, not model" in capsys.readouterr().out
    config = read_settings(tmp_path / "run")
    assert (config.diffusion.betas, config.diffusion.num_timesteps, config.data.num_classes) == ("cosine", 400, 5)
    back = guided_diffusion.state_dict(make_network(config), load_params(tmp_path / "run", config)[0])
    assert back.keys() == state_dict.keys()
    assert all(np.array_equal(back[key], value) for key, value in state_dict.items())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--preset=imagenet64", "--channels=32"], "--preset=imagenet64 and --channels are both given"),
        (["--preset=imagenet64", "--model_flags=x.json"], "--preset=imagenet64 and --model_flags are both given"),
        (["--model_flags=absent.json"], "--model_flags=absent.json: there is no such file"),
        (["--channels=32", "--num_channels=32"], "--channels and --num_channels are both given"),
    ],
)
def test_flags_that_exclude_each_other_are_reported(golden, words, expected, tmp_path):
    with pytest.raises(UsageError, match=expected):
        cli.run_command(
            ["convert", "openai-adm", f"--checkpoint={golden[0] / 'x.pt'}", f"--out={tmp_path / 'run'}", *words]
        )


@pytest.mark.parametrize(("value", "told"), [(np.nan, "1 of"), (np.inf, "1 of"), (-np.inf, "1 of")])
@pytest.mark.parametrize("save", [save_pt, save_safetensors])
def test_weights_that_are_not_finite_are_not_converted(golden, save, value, told, tmp_path):
    state_dict = {key: array.copy() for key, array in golden[1].items()}
    state_dict["middle_block.1.qkv.bias"][3] = value
    save(tmp_path / "x.pt", state_dict)
    with pytest.raises(UsageError, match=rf"\A[^\n]*middle_block\.1\.qkv\.bias has {told}[^\n]*not finite[^\n]*\Z"):
        convert(tmp_path, "x.pt", FLAGS)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_a_float64_that_overflows_is_not_finite():
    config, state_dict, _ = load(GOLDENS / "unet_adm.npz")
    state_dict = state_dict | {"out.2.bias": np.full(6, 1e300)}
    with pytest.raises(UsageError, match=r"out\.2\.bias has 6 of 6 values that are not finite in float32"):
        guided_diffusion.unet(config, state_dict)


@pytest.mark.parametrize("dtype", ["i4", "?", "c8", "M8[s]", "U1", "S1"])
def test_weights_that_are_no_floating_point_numbers_are_refused(dtype):
    config, state_dict, _ = load(GOLDENS / "unet_adm.npz")
    with pytest.raises(UsageError, match=r"out\.2\.bias has dtype .*floating-point"):
        guided_diffusion.unet(config, state_dict | {"out.2.bias": np.zeros(6, dtype)})


def test_a_sharded_checkpoint_is_converted_by_its_index(golden, tmp_path):
    keys = sorted(golden[1])
    names = {key: f"x-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(keys)}
    for name in set(names.values()):
        save_safetensors(tmp_path / name, {key: golden[1][key] for key in keys if names[key] == name})
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert convert(tmp_path, "x.safetensors.index.json", FLAGS) == 0
    assert cfgjax.load(tmp_path / "run").num_classes == 5
