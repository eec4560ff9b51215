"""The commands as processes, with real signals."""

import json
import re
import signal
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from command import finish, run, start
from disks import small_disk
from tiny import same_trees

MIXTURE = (
    "train --config=experiments/mixture.py --config.data.num_examples=256 --config.model.width=32 "
    "--config.train.batch_size=16 --config.train.steps_per_dispatch=5 --config.train.num_steps={steps} "
    "--config.train.log_every_steps=50 --config.checkpoint.every_steps=100 --config.checkpoint.keep_last=2 "
    "--config.sample.every_steps=1000 --config.sample.per_cell=2 --config.sample.num_steps=4 --workdir={workdir}"
)
STEPS = 3000
pytestmark = pytest.mark.e2e


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


def test_a_stopped_killed_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(straight, tmp_path):
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


def test_a_run_killed_at_any_moment_resumes_from_a_complete_step(straight, tmp_path):
    workdir, rng, kills = tmp_path / "run", np.random.default_rng(0), 0
    reached = [lambda step=step: wait_for_step(workdir, step) for step in sorted(rng.integers(1, STEPS - 600, 4))]
    passed = [lambda seconds=seconds: time.sleep(seconds) for seconds in rng.uniform(0.5, 6, 4)]  # and while it starts
    for moment in reached + passed:
        process = start(train(workdir))
        moment()
        time.sleep(rng.uniform(0, 0.1))
        kills += process.poll() is None
        process.kill()
        finish(process)
    code, _, err = run(train(workdir))
    assert code == 0, err
    assert kills > 2
    assert metrics(workdir) == metrics(straight)
    assert same_trees(state(workdir, STEPS), state(straight, STEPS))


def test_a_finished_run_does_nothing_and_can_be_extended(straight):
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


def test_a_diverging_run_stops_with_the_reason(tmp_path):
    code, _, err = run(train(tmp_path / "run") + " --config.optimizer.learning_rate=1e30")
    assert code == 1
    assert "steps in a row" in err.strip().splitlines()[-1]
    assert "lower optimizer.learning_rate" in err


def test_a_full_disk_is_reported_and_the_last_complete_step_survives(tmp_path):
    with small_disk(tmp_path, "3m") as grow:
        code, out, err = run(train(tmp_path / "run").replace("keep_last=2", "keep_last=1000"))
        assert code == 1, out
        last = err.splitlines()[-1]  # before it, threads of Orbax may have had their say
        assert "No space left on device" in last
        whole = int(re.search(r"; step (\d+) is complete$", last)[1])
        grow("100m")
        code, out, _ = run(train(tmp_path / "run", whole + 50))
        assert code == 0
        assert f"resumed at step {whole}" in out
