"""The commands called within the test's process: bad input, help, pictures. One run is trained by processes."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import runs
from command import ROOT, finish, start, wait_until
from PIL import Image
from tiny import digits_config, mixture_config

import cfgjax
from cfgjax.api.training_runs import train
from cfgjax.base.errors import UsageError
from cfgjax.base.files import read_npz
from cfgjax.cli import main as cli

TINY = (
    "--config=experiments/mixture.py --config.data.num_examples=256 --config.model.width=32 --config.model.depth=1 "
    "--config.train.batch_size=16 --config.train.steps_per_dispatch=5 --config.train.num_steps={steps} "
    "--config.train.log_every_steps=50 --config.checkpoint.every_steps=1000 --config.sample.every_steps=1000000"
)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The workdir of a run on three Gaussians."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    runs.train(mixture_config(**{"mesh.data": 1}), workdir)
    return workdir


def refused(words):
    """The error of `cfgjax WORDS`, of one line."""
    with pytest.raises(UsageError) as raised:
        cli.run_command(words.split())
    assert "\n" not in str(raised.value)
    return str(raised.value)


def logged_steps(run):
    """The steps of the complete lines of metrics.jsonl."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def train_until_stopped(command, run):
    """(exit code, stdout, stderr) of a training process that gets SIGTERM after it has logged."""
    process, before = start(command), len(logged_steps(run))
    wait_until(lambda: len(logged_steps(run)) > before or process.poll() is not None, 300)
    process.send_signal(signal.SIGTERM)
    return finish(process)


@pytest.mark.slow
def test_a_run_is_stopped_by_a_signal_resumed_and_sampled(tmp_path):
    """The one run of this tier that is trained as users do: `train`, SIGTERM, `train`, SIGTERM, `sample`."""
    run = tmp_path / "run"
    for begins in ("new run", "resumed at step"):
        code, out, err = train_until_stopped(f"train {TINY.format(steps=10**6)} --workdir={run}", run)
        assert code == 75, err
        assert begins in out and "SIGTERM: saved step" in out.splitlines()[-1]
    steps = logged_steps(run)
    assert steps == list(range(50, 50 * len(steps) + 1, 50))
    assert cli.run_command(f"sample --workdir={run} --labels=0,1 --num_steps=2 --out={tmp_path}/grid.png".split()) == 0
    assert (tmp_path / "grid.png").stat().st_size > 100


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("--config.train.batchsize=8", "'train.batchsize', did you mean 'train.batch_size'?"),
        ("--config.modle.width=8", "'modle.width', did you mean 'model.width'?"),
        ("--config.train.batch_size=many", "invalid literal for int"),
        ("--config.train.num_steps=12", "train.num_steps 12 is not a multiple of train.steps_per_dispatch 5"),
        ("--config.sample.sampler=ddmi", "unknown sampler 'ddmi', did you mean 'ddim'?"),
        ("--config.sample.labels=(0,3)", "sample.labels entry 1 is 3; need 0 … 2"),
        ("--config.diffusion.p_uncond=1.5", "diffusion.p_uncond is 1.5; need "),
        ("--config.mesh.data=3", "does not match the 8 devices"),
        ("--config.seed=-1", "seed is -1; need "),
        ("--config.optimizer.clip_norm=0.0", "optimizer.clip_norm is 0.0; need "),
        ("--config.data.random_flip=True", "data.random_flip"),
        ("--config.data.image_shape=(2,2,1)", "config.model: an MLP takes points"),
        ("--config.data.means=None", "data.means"),
        ("--wrkdir=x", "'wrkdir'. Did you mean: workdir"),
    ],
)
def test_bad_input_is_a_one_line_error_and_leaves_no_files(tmp_path, override, key):
    assert key in refused(f"train {TINY.format(steps=100)} --workdir={tmp_path}/run {override}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["x = 1", "def get_config():\n    return {}['a']", "def get_config(:"])
def test_a_broken_config_file_is_named(tmp_path, text):
    path = tmp_path / "config.py"
    path.write_text(text)
    assert f"config file {path}" in refused(f"train --config={path} --workdir={tmp_path}/run --config.seed=1")


def test_a_workdir_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").touch()
    told = refused(f"train {TINY.format(steps=100)} --workdir={tmp_path}/file/run")
    assert f"{tmp_path}/file/run" in told and "Not a directory" in told


def test_a_different_config_is_refused_with_the_key_and_both_values(workdir):
    with pytest.raises(
        UsageError, match=r"diffusion\.p_uncond is 0\.2, the run has 0\.1; add --allow_changes=diffusion.p_uncond"
    ):
        train(mixture_config(**{"diffusion.p_uncond": 0.2}), workdir)


@pytest.mark.parametrize("gone", ["checkpoints", "checkpoints/*"])
def test_a_run_without_its_checkpoints_is_refused_and_not_changed(workdir, gone, tmp_path):
    run = shutil.copytree(workdir, tmp_path / "run")
    for path in run.glob(gone):
        shutil.rmtree(path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(UsageError, match="but no checkpoint; nothing was overwritten"):
        train(mixture_config(**{"train.num_steps": 50}), run)
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.slow
def test_sample_draws_a_picture_that_depends_on_the_seed_alone(workdir, tmp_path):
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        words = f"sample --workdir={workdir} --labels=0,1 --guidance=0,1,3 --num_steps=8 --per_cell=5 --seed={seed}"
        assert cli.run_command([*words.split(), f"--out={tmp_path / name}.png"]) == 0
    a, b, c = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run on digits, trained for four steps."""
    workdir = tmp_path_factory.mktemp("digits") / "run"
    train(digits_config(), workdir)
    return workdir


def drawn(digits, out, more=""):
    words = f"sample --workdir={digits} --labels=1,7 --per_cell=2 --num_steps=3 --guidance=2 --out={out} {more}"
    assert cli.run_command(words.split()) == 0
    return Path(out)


def test_sample_writes_arrays_that_other_evaluators_read(digits, tmp_path):
    with np.load(drawn(digits, tmp_path / "a.npz")) as stored:
        images, labels = stored["arr_0"], stored["arr_1"]
    assert labels.tolist() == [1, 1, 7, 7]
    assert np.array_equal(images, cfgjax.load(digits).sample(labels, 2.0, num_steps=3))
    with np.load(drawn(digits, tmp_path / "b.npz", "--num_samples=5")) as stored:
        assert stored["arr_1"].tolist() == [1, 7, 1, 7, 1] and len(stored["arr_0"]) == 5


def test_sample_writes_single_images_named_by_label_and_setting(digits, tmp_path):
    folder = drawn(digits, tmp_path / "one")
    images = read_npz(drawn(digits, tmp_path / "a.npz"))["arr_0"]
    assert sorted(path.name for path in folder.glob("*.png")) == [
        f"{i:06d}_label_{label}.png" for i, label in enumerate((1, 1, 7, 7))
    ]
    assert np.array_equal(np.asarray(Image.open(folder / "000002_label_7.png")), images[2, ..., 0])
    several = drawn(digits, tmp_path / "two", "--guidance=0,2")
    assert (several / "000000_label_1_w=0.png").exists() and len(list(several.glob("*.png"))) == 8


def test_every_kind_of_file_has_the_protocol_of_its_samples(digits, tmp_path):
    with Image.open(drawn(digits, tmp_path / "a.png")) as picture:
        card = json.loads(picture.text["protocol"])
    told = {"w": "2", "s = 1 + w": "3", "T": "3", "samples": "4", "labels": "2 each of 1, 7", "step": "4", "seed": "0"}
    assert told.items() <= card.items()
    assert not {"features", "reference"} & card.keys()
    for name in ("a.gif", "a.jpg"):
        with Image.open(drawn(digits, tmp_path / name)) as picture:
            assert json.loads(picture.info["comment"]) == card
    with np.load(drawn(digits, tmp_path / "a.npz")) as stored:
        assert json.loads(str(stored["protocol"])) == card
    assert json.loads((drawn(digits, tmp_path / "one") / "protocol.json").read_text()) == card
    for ending in ("webp", "tiff", "pdf", "bmp"):  # which have no place for it
        assert drawn(digits, tmp_path / f"a.{ending}").exists()


@pytest.mark.parametrize("out", ["a.png", "a.npz"])
def test_sample_reports_the_effective_sample_size_of_groups(workdir, tmp_path, out, capsys):
    flags = "--labels=0,2 --num_steps=4 --guidance=1 --sampler=tilted(particles=2)"
    more = "--num_samples=8" if out == "a.npz" else "--per_cell=4"
    assert cli.run_command(f"sample --workdir={workdir} --out={tmp_path}/{out} {flags} {more}".split()) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("effective sample size: "))
    mean = float(line.split("mean ")[1].split(",")[0])
    assert 1 <= mean <= 2 and "of 2 particles" in line
    if out == "a.png":
        with Image.open(tmp_path / out) as picture:
            assert json.loads(picture.text["protocol"])["effective sample size"] in line
        return
    with np.load(tmp_path / out) as stored:
        assert stored["arr_1"].tolist() == [0, 0, 2, 2, 0, 0, 2, 2]  # labels take turns by groups
        assert json.loads(str(stored["protocol"]))["effective sample size"] in line


def test_sample_writes_an_animation_of_the_levels_that_ends_with_the_samples(digits, tmp_path):
    with Image.open(drawn(digits, tmp_path / "a.png")) as picture:
        last = picture.convert("RGB")
    with Image.open(drawn(digits, tmp_path / "a.gif")) as animation:
        assert 2 <= animation.n_frames <= 4 and animation.size == last.size  # frames that are equal become one
        animation.seek(animation.n_frames - 1)
        assert np.abs(np.asarray(animation.convert("RGB"), int) - np.asarray(last, int)).mean() < 2


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        ("--labels=0,7", "label 1 is 7; need 0 … 2"),
        ("--labels=a", "label 'a' is not a number, and the run recorded no class names"),
        ("--labels=", "label has shape (0,): there are none"),
        ("--num_samples=5", "--num_samples is for an .npz or a folder"),
        ("--guidance=1 --scale=2", "--guidance (w) and --scale (s = 1 + w) are both given"),
        ("--guidance=", "--guidance=: need numbers"),
        ("--seed=-1", "seed is -1; need an integer"),
        ("--out=grid.fits", "--out=grid.fits"),
        ("--sampler=ddim(v=0.3)", "ddim takes no 'v'; known: eta"),
        (
            "--out=x.npz --guidance=1 --sampler=tilted(particles=4) --per_cell=6",
            "--per_cell=6 is not divisible by the 4 particles",
        ),
        (
            "--out=x.npz --guidance=1 --sampler=tilted(particles=4) --num_samples=6",
            "--num_samples=6 is not divisible by the 4",
        ),
        ("--sampler=ddim,ddim()", "sampler ddim(), ddim(): a value occurs twice"),
        ("--rule=cgf", "unknown rule 'cgf', did you mean 'cfg'?"),
        ("--rule=classifier", "rule classifier() needs a classifier; give its run with --guide"),
        ("--ema=0,0.5", "ema 0.5 is neither a rate of the run (0.999, 0) nor a width"),
        ("--out=grid.txt", "the ending must be .png or another image format (a grid), .gif"),
        ("--out=x.npz --guidance=0,1", "an .npz has the samples of one setting; these flags give 2"),
        ("--out=folder", "--out=folder: the samples are points, not images"),
        ("--step=7", "there is no step 7"),
        ("grid.png", "takes only flags"),
    ],
)
def test_bad_sampling_input_is_a_one_line_error(workdir, flags, key, tmp_path):
    assert key in refused(f"sample --workdir={workdir} --out={tmp_path}/x.png {flags}")
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_run_and_an_unknown_command_are_named(tmp_path):
    assert f"{tmp_path} holds no run" in refused(f"sample --workdir={tmp_path} --out={tmp_path}/x.png")
    assert "unknown command 'trian', did you mean 'train'?" in refused("trian")


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        ("train --help", "--workdir"),
        ("sample -h", "--guidance"),
        ("launch slurm --help", "--gpus_per_node"),
        ("convert diffusers --help", "--betas=linear|cosine"),
    ],
)
def test_help_of_a_command_lists_its_flags(words, flag, capsys):
    assert cli.run_command(words.split()) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"cfgjax {words.split()[0]} ") and f"  {flag}: " in output
    assert "absl" not in output and "cfgjax.cli" not in output


def test_an_error_is_one_line_on_stderr_and_exit_code_2():
    ran = subprocess.run([sys.executable, "-m", "cfgjax", "trian"], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert ran.stderr.startswith("cfgjax: error: ")
