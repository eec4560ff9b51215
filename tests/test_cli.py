"""The commands as processes, with real signals."""

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from command import finish, run, start
from PIL import Image
from tiny import same_trees

MIXTURE = (
    "train --config=experiments/mixture.py --config.data.num_examples=256 --config.model.width=32 "
    "--config.train.batch_size=16 --config.train.steps_per_dispatch=5 --config.train.num_steps={steps} "
    "--config.train.log_every_steps=50 --config.checkpoint.every_steps=100 --config.checkpoint.keep_last=2 "
    "--config.sample.every_steps=1000 --config.sample.per_cell=2 --config.sample.num_steps=4 --workdir={workdir}"
)
STEPS = 3000


def train(workdir, steps=STEPS):
    return MIXTURE.format(workdir=workdir, steps=steps)


def wait_for_step(workdir, step):
    """Until metrics.jsonl has a line of this step or a later one."""
    deadline = time.monotonic() + 300  # four processes compile on one or two busy cores
    while not any(line["step"] >= step for line in metrics(workdir)):
        assert time.monotonic() < deadline, "the run did not get so far"
        time.sleep(0.01)


def metrics(workdir):
    """The whole lines of metrics.jsonl without the one value that may differ, the speed."""
    path = Path(workdir) / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    lines = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def state(workdir, step):
    """Everything in a checkpoint, as numpy."""
    path = Path(workdir).absolute() / "checkpoints" / str(step) / "state"
    restore_args = ocp.RestoreArgs(restore_type=np.ndarray)
    with ocp.PyTreeCheckpointer() as checkpointer:
        import jax

        like = checkpointer.metadata(path).item_metadata.tree
        return checkpointer.restore(path, restore_args=jax.tree.map(lambda _: restore_args, like))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The workdir of a run that was left alone."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    code, _, err = run(train(workdir))
    assert code == 0, err
    return workdir


def test_a_run_leaves_config_metrics_events_checkpoints_and_pictures(straight):
    assert json.loads((straight / "config.json").read_text())["train"]["num_steps"] == STEPS
    assert [line["step"] for line in metrics(straight)] == list(range(50, STEPS + 1, 50))
    assert {"loss", "loss_cond", "loss_uncond", "drop_rate", "grad_norm"} < metrics(straight)[-1].keys()
    assert sorted(int(p.name) for p in (straight / "checkpoints").iterdir()) == [STEPS - 100, STEPS]
    assert [p.name for p in sorted((straight / "samples").iterdir())] == [f"step_0000{n}000.png" for n in (1, 2, 3)]
    assert list(straight.glob("events.out.tfevents.*"))


def test_stopped_killed_and_resumed_is_straight_through_bit_for_bit(straight, tmp_path):
    workdir = tmp_path / "run"
    for number, step, code in [(signal.SIGTERM, 350, 75), (signal.SIGKILL, 900, -9), (signal.SIGINT, 1500, 75)]:
        process = start(train(workdir))
        wait_for_step(workdir, step)
        process.send_signal(number)
        returned, out, err = finish(process)
        assert returned == code, err
        if code == 75:
            assert f"{number.name}: saved step" in out.splitlines()[-1]
    code, out, _ = run(train(workdir))
    assert code == 0
    assert "resumed at step" in out
    assert metrics(workdir) == metrics(straight)
    assert same_trees(state(workdir, STEPS), state(straight, STEPS))
    last = "samples/step_00003000.png"
    assert (workdir / last).read_bytes() == (straight / last).read_bytes()


@pytest.mark.slow
def test_killed_at_any_moment_a_run_goes_on_from_a_whole_step(straight, tmp_path):
    workdir, rng, kills = tmp_path / "run", np.random.default_rng(0), 0
    for _ in range(20):
        process = start(train(workdir))
        time.sleep(rng.uniform(2, 9))
        kills += process.poll() is None
        process.kill()
        finish(process)
    code, _, err = run(train(workdir))
    assert code == 0, err
    assert kills > 5
    assert metrics(workdir) == metrics(straight)
    assert same_trees(state(workdir, STEPS), state(straight, STEPS))


def test_a_finished_run_has_nothing_left_and_can_be_made_longer(straight):
    before = (straight / "metrics.jsonl").read_text()
    code, out, _ = run(train(straight))
    assert code == 0
    assert "nothing left to do" in out
    assert (straight / "metrics.jsonl").read_text() == before
    code, out, _ = run(train(straight, STEPS + 50))
    assert code == 0
    assert f"resumed at step {STEPS}" in out
    assert metrics(straight)[-1]["step"] == STEPS + 50


def test_progress_is_plain_lines_when_redirected(tmp_path):
    code, out, err = run(train(tmp_path / "run", 100))
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("step 50/100")]
    for told in ("loss ", "cond ", "uncond ", "images/s", "ETA "):
        assert told in line
    assert "\r" not in out + err


def test_a_workdir_in_use_is_refused(tmp_path):
    process = start(train(tmp_path / "run", 10**6))
    wait_for_step(tmp_path / "run", 50)
    code, _, err = run(train(tmp_path / "run", 10**6))
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 75
    assert code == 2
    assert f"is in use by process {process.pid}" in err


def test_another_config_is_refused_and_the_key_is_told(straight):
    code, _, err = run(train(straight) + " --config.diffusion.p_uncond=0.2")
    assert code == 2
    assert err.strip().endswith("another config: diffusion.p_uncond is 0.2, the run has 0.1")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("--config.train.batchsize=8", "unknown config key 'train.batchsize', did you mean 'train.batch_size'?"),
        ("--config.modle.width=8", "unknown config key 'modle.width', did you mean 'model.width'?"),
        ("--config.train.batch_size=many", "invalid literal for int"),
        (
            "--config.train.num_steps=12",
            "train.num_steps 12 is not a multiple of train.steps_per_dispatch 5; use 10 or 15",
        ),
        ("--config.sample.sampler=ddmi", "unknown sampler 'ddmi', did you mean 'ddim'?"),
        ("--config.sample.labels=(0,3)", "sample.labels entry 1 is 3; need 0 … 2"),
        ("--config.diffusion.p_uncond=1.5", "diffusion.p_uncond is 1.5; need a number in [0, 1]"),
        ("--config.mesh.data=3", "does not make up the 1 devices"),
        ("--config.seed=-1", "seed is -1; need an integer of at least 0"),
        ("--config.optimizer.clip_norm=0.0", "optimizer.clip_norm is 0.0; need a number that is finite and above 0"),
        ("--config.data.random_flip=True", "data.random_flip, random_crop and low_res_size are for images"),
        ("--config.data.image_shape=(2,2,1)", "config.model: an MLP takes points"),
        ("--wrkdir=x", "Unknown command line flag 'wrkdir'. Did you mean: workdir"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(tmp_path, override, told):
    code, _, err = run(f"{train(tmp_path / 'run')} {override}")
    assert code == 2
    assert told in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_run_whose_checkpoints_are_gone_is_refused_and_left_as_it_is(straight, tmp_path):
    for gone in ("checkpoints", "checkpoints/*"):
        workdir = tmp_path / gone.replace("/*", "s")
        shutil.copytree(straight, workdir)
        for path in workdir.glob(gone):
            shutil.rmtree(path)
        before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file() and path.name != ".lock"}
        code, _, err = run(train(workdir, STEPS + 50))
        assert code == 2
        assert "but no checkpoint; nothing was overwritten" in err
        assert all(path.read_bytes() == content for path, content in before.items())


def test_none_can_be_given_and_broken_config_files_are_told(tmp_path):
    code, _, err = run(f"{train(tmp_path / 'run')} --config.data.means=None")
    assert (code, len(err.strip().splitlines())) == (2, 1), err
    for number, text in enumerate(["x = 1", "def get_config():\n    return {}['a']", "def get_config(:"]):
        path = tmp_path / f"config{number}.py"
        path.write_text(text)
        code, _, err = run(f"train --config={path} --workdir={tmp_path / 'run'} --config.seed=1")
        assert code == 2, err
        assert f"config file {path}" in err
        assert len(err.strip().splitlines()) == 1


def test_a_workdir_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    code, _, err = run(train(tmp_path / "file" / "run"))
    assert code == 2
    assert "cannot be written: Not a directory" in err


def test_a_run_that_diverges_stops_with_the_reason(tmp_path):
    code, _, err = run(train(tmp_path / "run") + " --config.optimizer.learning_rate=1e30")
    assert code == 1
    assert "steps in a row" in err.strip().splitlines()[-1]
    assert "lower optimizer.learning_rate" in err


def test_a_full_disk_is_reported_and_the_last_whole_step_survives(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        code, out, err = run(train(tmp_path / "run").replace("keep_last=2", "keep_last=1000"))
        assert code == 1, out
        last = err.splitlines()[-1]  # before it, threads of Orbax may have had their say
        assert "No space left on device" in last
        whole = int(re.search(r"; step (\d+) is whole$", last)[1])
        subprocess.run(["mount", "-o", "remount,size=100m", tmp_path], check=True)
        code, out, _ = run(train(tmp_path / "run", whole + 50))
        assert code == 0
        assert f"resumed at step {whole}" in out
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_sample_draws_a_picture_that_depends_on_the_seed_alone(straight, tmp_path):
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        command = f"sample --workdir={straight} --labels=0,1 --guidance=0,1,3 --num_steps=8 --per_cell=5"
        code, out, err = run(f"{command} --seed={seed} --out={tmp_path / name}.png")
        assert code == 0, err
        assert "wrote" in out
    a, b, c = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--labels=0,7", "label 1 is 7; need 0 … 2"),
        ("--labels=a", "--labels=a: need integers"),
        ("--guidance=1 --scale=2", "--guidance (w) and --scale (s = 1 + w) are both given"),
        ("--guidance=", "--guidance=: need numbers"),
        ("--seed=-1", "seed is -1; need an integer"),
        ("--out=grid.fits", "the ending must be that of a picture"),
        ("--sampler=ddim --v=0.3", "sampler ddim takes no v"),
        ("--out=grid.txt", "the ending must be that of a picture"),
        ("--step=7", "there is no step 7"),
        ("grid.png", "takes flags only"),
    ],
)
def test_bad_sampling_input_is_one_line(straight, flags, told, tmp_path):
    code, _, err = run(f"sample --workdir={straight} --out={tmp_path}/x.png {flags}")
    assert code == 2
    assert told in err
    assert len(err.strip().splitlines()) == 1


def test_a_folder_without_a_run_and_an_unknown_command_are_told(tmp_path):
    assert "holds no run" in run(f"sample --workdir={tmp_path}")[2]
    code, _, err = run("trian")
    assert code == 2
    assert "unknown command 'trian', did you mean 'train'?" in err


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        ("train --help", "--workdir"),
        ("sample -h", "--guidance"),
        ("launch slurm --help", "--gpus_per_node"),
        ("convert diffusers --help", "--betas"),
    ],
)
def test_help_of_a_command_says_what_it_does_and_lists_its_flags(words, flag):
    code, output, _ = run(words)
    assert code == 0
    assert output.startswith(f"cfgjax {words.split()[0]} ") and f"  {flag}: " in output
    assert "absl" not in output and "cfgjax.cli" not in output
