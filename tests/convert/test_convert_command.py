"""`cfgjax convert` makes a whole workdir of a published file, or one line and nothing."""

import functools
import importlib.util
import json
import os
import pickle
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import same_trees
from weight_files import GOLDENS, SMALL_ADM, load, save_pt, save_safetensors

import cfgjax
from cfgjax.base.errors import UsageError
from cfgjax.cli import main as cli
from cfgjax.convert import guided_diffusion, presets
from cfgjax.convert.layout import leaves_by_path, shapes_of
from cfgjax.convert.presets import Preset
from cfgjax.models.network import check_network, make_network
from cfgjax.runs.averages import load_params
from cfgjax.runs.checkpoint import Checkpoints
from cfgjax.runs.manifest import complete_steps
from cfgjax.runs.settings import section_names
from cfgjax.runs.training_settings import CheckpointSettings
from cfgjax.runs.workdir import read_settings
from cfgjax.training.state import TrainState

SMALL = SMALL_ADM | dict(image_size=8)
UNET = SMALL | dict(out_channels=6, num_classes=5)
TINY = {
    "tiny": Preset("unet", UNET, "cosine", "tiny", 5),
    "tiny_uncond": Preset("unet", UNET | {"num_classes": None}, "cosine", "tiny", 1),
    "tiny_upsampler": Preset("upsampler", UNET, "cosine", "tiny", 5, low_res_size=4),
    "tiny_classifier": Preset("classifier", SMALL | dict(out_channels=7, pool="attention"), "cosine", "tiny", 7),
}
EVERY = pytest.mark.parametrize("name", TINY)


def weights(name):
    """A state dict for a tiny preset."""
    return dict(drawn(name))


@functools.cache
def drawn(name):
    net, image_shape = guided_diffusion.MAKERS[TINY[name].kind](TINY[name].arguments)
    rng = np.random.default_rng(len(name))
    draw = lambda leaf: (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32)
    return guided_diffusion.state_dict(net, jax.tree.map(draw, shapes_of(net, image_shape)))


@pytest.fixture(autouse=True)
def tiny_presets(monkeypatch):
    """Small networks in place of the published ones."""
    monkeypatch.setattr(presets, "PRESETS", TINY)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a checkpoint of every tiny preset."""
    folder = tmp_path_factory.mktemp("files")
    for name in TINY:
        save_pt(folder / f"{name}.pt", weights(name))
    return folder


def convert(files, name, out, *others):
    words = ["convert", "openai-adm", f"--preset={name}", f"--checkpoint={files / f'{name}.pt'}", f"--out={out}"]
    return cli.run_command([*words, *others])


@pytest.fixture(scope="module")
def runs(files, tmp_path_factory):
    """A folder with the workdir of every tiny preset."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(presets, "PRESETS", TINY)
        for name in TINY:
            convert(files, name, folder / name)
    return folder


@EVERY
def test_a_conversion_leaves_an_ordinary_workdir(runs, name):
    config = read_settings(runs / name)
    assert set(config.given) == {"seed", *section_names(config.model.name)}
    assert complete_steps(runs / name / "checkpoints") == [0]
    params, step = load_params(runs / name, config)
    shapes = check_network(make_network(config), config.data.image_shape)
    assert step == 0
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)
    net, _ = guided_diffusion.MAKERS[TINY[name].kind](TINY[name].arguments)
    assert make_network(config) == net.clone(num_classes=TINY[name].num_classes)
    assert sorted(path.name for path in runs.iterdir()) == sorted(TINY)


def test_a_converted_network_is_given_its_timesteps(runs):
    levels, time = cfgjax.load(runs / "tiny").levels, np.arange(0, 1000, 111)
    t = (np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2
    alpha_bar = np.cumprod(1 - np.minimum(1 - np.cos(t[1:]) ** 2 / np.cos(t[:-1]) ** 2, 0.999))[time]  # IDDPM eq. (17)
    np.testing.assert_allclose(levels.time(np.float32(np.log(alpha_bar / (1 - alpha_bar)))), time, atol=1e-2)


@pytest.mark.slow
def test_a_converted_model_draws_samples(runs):
    images = cfgjax.load(runs / "tiny_uncond").sample(labels=[0, 0], num_steps=2)
    assert images.shape == (2, 8, 8, 3) and images.dtype == np.uint8
    assert (images[0] != images[1]).any()


@pytest.mark.slow
def test_a_converted_upsampler_enlarges_images(runs):
    low_res = np.zeros((2, 4, 4, 3), np.uint8)
    assert cfgjax.load(runs / "tiny_upsampler").sample([1, 4], num_steps=2, low_res=low_res).shape == (2, 8, 8, 3)


@pytest.mark.slow
def test_sample_takes_a_converted_workdir(runs, tmp_path):
    words = [f"--workdir={runs / 'tiny'}", f"--out={tmp_path / 'grid.png'}", "--per_cell=1", "--num_steps=2"]
    assert cli.run_command(["sample", "--labels=0,3", *words]) == 0
    assert (tmp_path / "grid.png").stat().st_size > 100


def test_the_null_label_is_one_row_more_that_has_yet_to_be_trained(runs, files, tmp_path):
    convert(files, "tiny", tmp_path / "run", "--null_label")
    model, label = cfgjax.load(tmp_path / "run"), weights("tiny")["label_emb.weight"]
    assert model.settings.model.options["null_label"] and not read_settings(runs / "tiny").model.options["null_label"]
    assert model.params["label"].shape == (6, 128)
    np.testing.assert_array_equal(model.params["label"][:5], label)
    np.testing.assert_allclose(model.params["label"][5], label.mean(axis=0), atol=1e-6)
    with pytest.raises(UsageError, match="guidance needs a network trained with dropped labels"):
        model.sample([1], guidance=1.0, num_steps=2)


@EVERY
def test_there_and_back_is_the_published_file(runs, name, tmp_path):
    assert (
        cli.run_command(["convert", "to-openai-adm", f"--workdir={runs / name}", f"--out={tmp_path / 'back.npz'}"]) == 0
    )
    expected = weights(name)
    with np.load(tmp_path / "back.npz") as file:
        assert set(file.files) == expected.keys()
        for key in file.files:
            assert file[key].dtype == np.float32
            np.testing.assert_array_equal(file[key], expected[key], err_msg=key)
    (tmp_path / "back.npz").rename(tmp_path / f"{name}.pt")  # the content tells what it is
    assert convert(tmp_path, name, tmp_path / "again") == 0
    params = [load_params(run, read_settings(run))[0] for run in (runs / name, tmp_path / "again")]
    assert same_trees(*params)


def test_a_pt_file_needs_torch(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs torch, which is not installed; use \.npz"):
        cli.run_command(["convert", "to-openai-adm", f"--workdir={runs / 'tiny'}", f"--out={tmp_path / 'back.pt'}"])


# One line, and nothing written


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("tiny", "tiny_classifier", r"tiny\.pt is not tiny: its keys .*; it fits tiny_classifier\Z"),
        ("tiny_uncond", "tiny", r"1 not used: label_emb\.weight; it fits tiny\Z"),
        (
            "tiny",
            "tiny_upsampler",
            r"input_blocks\.0\.0\.weight has shape \(32, 6, 3, 3\), .*; it fits tiny_upsampler\Z",
        ),
    ],
)
def test_the_checkpoint_of_another_preset_is_told_with_its_name(name, given, told, tmp_path):
    save_pt(tmp_path / f"{name}.pt", weights(given))
    with pytest.raises(UsageError, match=told):
        convert(tmp_path, name, tmp_path / "run")
    assert os.listdir(tmp_path) == [f"{name}.pt"]


def test_missing_and_extra_keys_are_named(tmp_path):
    arrays = weights("tiny")
    arrays["out.3.weight"] = arrays.pop("out.2.weight")
    save_pt(tmp_path / "tiny.pt", arrays)
    with pytest.raises(UsageError, match=r"1 missing: out\.2\.weight; 1 not used: out\.3\.weight\Z"):
        convert(tmp_path, "tiny", tmp_path / "run")
    assert os.listdir(tmp_path) == ["tiny.pt"]


def test_a_truncated_file_is_told(files, tmp_path):
    content = (files / "tiny.pt").read_bytes()
    (tmp_path / "tiny.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match=r"\Acannot read [^\n]*tiny\.pt[^\n]*\Z"):
        convert(tmp_path, "tiny", tmp_path / "run")
    assert os.listdir(tmp_path) == ["tiny.pt"]


NEW = ["--checkpoint=x.pt", "--out=new"]


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_does_not_run(tmp_path):
    (tmp_path / "tiny.pt").write_bytes(pickle.dumps({"x": Code(tmp_path / "made")}, 2))
    with pytest.raises(UsageError, match=r"\A[^\n]* which is not a tensor; refused[^\n]*\Z"):
        convert(tmp_path, "tiny", tmp_path / "run")
    assert os.listdir(tmp_path) == ["tiny.pt"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "the first word must be one of openai-adm, diffusers, to-openai-adm"),
        (["--preset=tiny"], "the first word must be one of"),
        (["openai_adm"], "unknown conversion 'openai_adm', did you mean 'openai-adm'?"),
        (["openai-adm"], "--preset and --checkpoint and --out must be given"),
        (["openai-adm", "--presto=tiny"], "presto"),
        (["openai-adm", "tiny"], "takes only flags"),
        (["openai-adm", "--preset=tinny", *NEW], "unknown preset 'tinny', did you mean 'tiny'?"),
        (["openai-adm", "--preset=tiny", *NEW], "cannot read x.pt: No such file"),
        (["openai-adm", "--preset=tiny_uncond", *NEW, "--null_label"], "conditional on labels"),
        (["openai-adm", "--preset=tiny_classifier", *NEW, "--null-label"], "conditional on labels"),
        (["diffusers", "--checkpoint=absent", "--out=new"], "absent is not a diffusers folder"),
        (["diffusers", "--checkpoint=absent", "--out=new", "--betas=sigmoid"], "betas"),
        (["to-openai-adm", "--workdir=absent", "--out=x.npz"], "absent holds no run"),
        (["to-openai-adm", "--workdir=absent", "--out=x.bin"], "the ending must be .npz"),
        (["to-openai-adm", "--workdir=absent", "--out=none/x.npz"], "it cannot be written in"),
    ],
)
def test_flags_that_do_not_fit_are_told(words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=told.replace("?", r"\?")):
        cli.run_command(["convert", *words])
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_not_overwritten(files, tmp_path):
    (tmp_path / "notes").write_text("mine")
    for out in (tmp_path, tmp_path / "notes"):
        with pytest.raises(UsageError, match="is not empty; nothing was overwritten|is not a directory"):
            convert(files, "tiny", out)
    assert os.listdir(tmp_path) == ["notes"]


def test_an_empty_folder_and_one_in_a_new_place_are_taken(files, tmp_path):
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "new/place"):
        assert convert(files, "tiny", out) == 0
        assert sorted(os.listdir(out)) == ["checkpoints", "config.json"]


def test_a_conversion_that_fails_while_writing_leaves_nothing(files, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr("cfgjax.runs.checkpoint.Checkpoints.save", fail)
    with pytest.raises(OSError, match="no space left"):
        convert(files, "tiny", tmp_path / "run")
    assert not os.listdir(tmp_path)


# diffusers


@pytest.fixture
def pipeline(tmp_path):
    """A pipeline of diffusers: a network and a scheduler."""
    config, state_dict, _ = load(GOLDENS / "diffusers_unet_adm.npz")
    for name in ("unet", "scheduler"):
        (tmp_path / "pipeline" / name).mkdir(parents=True)
    (tmp_path / "pipeline/unet/config.json").write_text(json.dumps(config))
    save_safetensors(tmp_path / "pipeline/unet/diffusion_pytorch_model.safetensors", state_dict)
    scheduler = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 400, "prediction_type": "epsilon"}
    (tmp_path / "pipeline/scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    return tmp_path / "pipeline"


def convert_diffusers(pipeline, *others):
    words = [f"--checkpoint={pipeline / 'unet'}", f"--out={pipeline / 'run'}", *others]
    return cli.run_command(["convert", "diffusers", *words])


def test_a_network_of_diffusers_becomes_a_workdir(pipeline):
    assert convert_diffusers(pipeline) == 0
    model = cfgjax.load(pipeline / "run")
    assert (model.num_classes, model.image_shape) == (5, (16, 16, 3))
    assert model.settings.diffusion.betas == "cosine" and model.settings.diffusion.num_timesteps == 400
    assert model.settings.diffusion.learned_variance


PREDICTIONS = {  # of a scheduler: (x̂, ε̂) of an output, given z, √ᾱ and √(1−ᾱ), as in `DDIMScheduler.step`
    "epsilon": lambda out, z, signal, noise: ((z - noise * out) / signal, out),
    "sample": lambda out, z, signal, noise: (out, (z - signal * out) / noise),
    "v_prediction": lambda out, z, signal, noise: (signal * z - noise * out, signal * out + noise * z),
}


@pytest.mark.slow
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_converted_network_predicts_the_pair_of_the_scheduler(pipeline, prediction):
    config, state_dict, arrays = load(GOLDENS / "diffusers_unet_conv.npz")
    (pipeline / "unet/config.json").write_text(json.dumps(config))
    save_safetensors(pipeline / "unet/diffusion_pytorch_model.safetensors", state_dict)
    scheduler = {"beta_schedule": "linear", "num_train_timesteps": 1000, "prediction_type": prediction}
    (pipeline / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    convert_diffusers(pipeline)

    z, t, out = arrays["in/x"], arrays["in/t"].astype(int), arrays["out/out"]
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[t][:, None, None, None]
    expected = PREDICTIONS[prediction](out, z, np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar))
    logsnr = np.log(alpha_bar / (1 - alpha_bar)).ravel()
    found = cfgjax.load(pipeline / "run").predict(z.transpose(0, 2, 3, 1), logsnr, 0)
    for ours, theirs in zip(found[:2], expected, strict=True):
        scale = np.abs(theirs).max(axis=(1, 2, 3), keepdims=True)  # x̂ of ε̂ at t = 940 is 100 times ε̂
        np.testing.assert_allclose(np.moveaxis(ours, -1, 1) / scale, theirs / scale, atol=5e-5)


def test_what_a_network_predicts_is_read_with_given_betas_too(pipeline):
    scheduler = {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
    (pipeline / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    with pytest.raises(UsageError, match="parametrisation is 'v', diffusion.learned_variance True"):
        convert_diffusers(pipeline, "--betas=linear")
    assert sorted(path.name for path in pipeline.iterdir()) == ["scheduler", "unet"]


def test_a_bin_file_is_read_too(pipeline):
    unet = pipeline / "unet"
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    save_pt(unet / "diffusion_pytorch_model.bin", load(GOLDENS / "diffusers_unet_adm.npz")[1])
    assert convert_diffusers(pipeline, "--betas=linear", "--null_label") == 0
    config = read_settings(pipeline / "run")
    assert (config.diffusion.betas, config.diffusion.num_timesteps) == ("linear", 1000)
    assert load_params(pipeline / "run", config)[0]["label"].shape == (6, 128)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("unet/config.json", "{", "config.json is damaged: it is not JSON"),
        ("unet/config.json", "[]", "it is a list, not an object"),
        ("unet/config.json", '{"norm_eps": 1e-06}', "norm_eps 1e-06; accepted: 1e-05"),
        ("unet/diffusion_pytorch_model.safetensors", "{}", "not a PyTorch, .npz"),
        ("scheduler/scheduler_config.json", '{"beta_schedule": "sigmoid"}', "has beta_schedule 'sigmoid'"),
    ],
)
def test_a_folder_of_diffusers_that_does_not_fit_is_told(pipeline, name, content, told):
    (pipeline / name).write_text(content)
    with pytest.raises(UsageError, match=told):
        convert_diffusers(pipeline)
    assert sorted(path.name for path in pipeline.iterdir()) == ["scheduler", "unet"]


def test_weights_of_another_config_are_told(pipeline):
    other, _, _ = load(GOLDENS / "diffusers_unet_conv.npz")
    (pipeline / "unet/config.json").write_text(json.dumps(other))
    with pytest.raises(UsageError, match=r"do not fit its config\.json: its keys are not the network's; \d+ missing"):
        convert_diffusers(pipeline)


def test_a_folder_without_weights_is_told(pipeline):
    (pipeline / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"has neither diffusion_pytorch_model\.safetensors nor"):
        convert_diffusers(pipeline)


def test_what_a_workdir_holds_is_what_the_file_held(pipeline):
    convert_diffusers(pipeline)
    _, state_dict, _ = load(GOLDENS / "diffusers_unet_adm.npz")
    values = np.sort(np.concatenate([value.ravel() for value in state_dict.values()]).astype(np.float32))
    params = leaves_by_path(load_params(pipeline / "run", read_settings(pipeline / "run"))[0])
    np.testing.assert_array_equal(np.sort(np.concatenate([leaf.ravel() for leaf in params.values()])), values)


def test_a_pipeline_of_half_precision_in_shards_is_read(pipeline, capsys):
    name = "unet/diffusion_pytorch_model.safetensors"
    (pipeline / name).unlink()
    (pipeline / "model_index.json").write_text("{}")
    _, state_dict, _ = load(GOLDENS / "diffusers_unet_adm.npz")
    shards = [f"diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for i, shard in enumerate(shards):
        save_safetensors(pipeline / "unet" / shard, dict(list(state_dict.items())[i::2]))
    index = {"weight_map": {key: shards[i % 2] for i, key in enumerate(state_dict)}}
    (pipeline / "unet/diffusion_pytorch_model.fp16.safetensors.index.json").write_text(json.dumps(index))
    assert cli.run_command(["convert", "diffusers", f"--checkpoint={pipeline}", f"--out={pipeline / 'run'}"]) == 0
    assert "read unet/diffusion_pytorch_model.fp16.safetensors.index.json" in capsys.readouterr().out
    assert read_settings(pipeline / "run").diffusion.num_timesteps == 400


def test_weights_with_a_nan_are_refused_wherever_they_are_loaded(runs, tmp_path):
    """A workdir that an earlier version converted is not sampled, not used as a guide and not converted back."""
    shutil.copytree(runs / "tiny", tmp_path / "run")
    broken = jax.tree.map(np.array, load_params(runs / "tiny", read_settings(runs / "tiny"))[0])
    broken["label"][2, 5] = np.nan
    shutil.rmtree(tmp_path / "run/checkpoints")
    with Checkpoints(tmp_path / "run/checkpoints", CheckpointSettings(1)) as checkpoints:
        checkpoints.save(0, TrainState(jnp.int32(0), broken, {}, ()), [])
    told = r"\A[^\n]*checkpoint step 0 of [^\n]*run: label has 1 of 640 values that are not finite\Z"
    for load_it in (
        cfgjax.load,
        lambda run: cli.run_command(["sample", f"--workdir={run}", f"--out={tmp_path / 'x.png'}"]),
    ):
        with pytest.raises(UsageError, match=told):
            load_it(tmp_path / "run")
    with pytest.raises(UsageError, match=told):
        cli.run_command(["convert", "to-openai-adm", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'x.npz'}"])
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_lists_the_conversions(word, capsys):
    assert cli.run_command(["convert", word]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} --" in out for name in ("openai-adm", "diffusers", "to-openai-adm"))
    assert cli.run_command(["convert", "openai-adm", word]) == 0
    assert "--num_res_blocks" in capsys.readouterr().out
