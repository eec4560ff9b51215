"""Power-function averages and their snapshots while training."""

import shutil
import time

import jax
import numpy as np
import pytest
from command import end_all, finish, finish_all, start, start_several
from runs import train
from tiny import mixture_config, same_trees

from cfgjax.base.errors import UsageError
from cfgjax.runs.checkpoint import restore_params
from cfgjax.runs.manifest import complete_steps
from cfgjax.training.run import Program, Run
from cfgjax.training.state import create_state

WIDTHS = {"ema.widths": (0.05, 0.1), "ema.snapshot_every_steps": 4, "checkpoint.keep_last": 1}
NAMES = ("width_0.05", "width_0.1")
STEPS = [4, 8, 12, 16, 20, 22]


def config(**overrides):
    return mixture_config(**WIDTHS | {"train.num_steps": 22, "checkpoint.every_steps": 6, "mesh.data": 1} | overrides)


def averages(workdir):
    """{(step, name): parameters} of all snapshots."""
    found = workdir / "snapshots"
    return {(step, name): restore_params(found, name, step)[0] for step in complete_steps(found) for name in NAMES}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The workdir of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    train(config(), workdir)
    return workdir


def test_snapshots_of_the_whole_run_are_retained_whatever_checkpoints_are(straight):
    assert sorted(complete_steps(straight / "snapshots")) == STEPS
    assert complete_steps(straight / "checkpoints") == [22]


def test_a_snapshot_has_the_averages_of_the_state(straight):
    found = averages(straight)
    for name in NAMES:
        assert same_trees(found[22, name], restore_params(straight / "checkpoints", name, 22)[0])
    assert not same_trees(found[22, NAMES[0]], found[22, NAMES[1]])


def test_a_state_without_widths_is_as_before():
    like = lambda **given: Program(mixture_config(**given), jax.devices()).like
    assert jax.tree.structure(like(**{"ema.widths": ()})) == jax.tree.structure(like())
    assert list(like().ema) == ["0.999"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "stops", [(16,), *(pytest.param(k, marks=pytest.mark.slow) for k in ((13, 30), (22,), (43, 5)))]
)
def test_an_interrupted_run_has_the_same_averages_and_snapshots_bit_for_bit(straight, tmp_path, stops):
    train(config(), tmp_path, stops)
    found, expected = averages(tmp_path), averages(straight)
    assert found.keys() == expected.keys()
    assert all(same_trees(found[key], expected[key]) for key in expected)


def harmed(path):
    file = max((path / "state").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.slow
def test_a_run_that_resumes_earlier_writes_later_snapshots_again(straight, tmp_path):
    train(config(**{"checkpoint.keep_last": 9}), tmp_path, (50,), ends=False)
    assert max(complete_steps(tmp_path / "checkpoints")) > 12
    for step in complete_steps(tmp_path / "checkpoints"):
        if step > 6:
            shutil.rmtree(tmp_path / "checkpoints" / str(step))
    for step in (8, 12):  # of another trajectory, or damaged
        harmed(tmp_path / "snapshots" / str(step))
    train(config(), tmp_path)
    found, expected = averages(tmp_path), averages(straight)
    assert found.keys() == expected.keys()
    assert all(same_trees(found[key], expected[key]) for key in expected)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["absent", "damaged"])
def test_the_snapshot_of_the_step_at_which_a_run_resumes_is_written_if_it_is_missing(straight, tmp_path, loss):
    shutil.copytree(straight, tmp_path / "run")
    path = tmp_path / "run" / "snapshots" / "22"
    expected = averages(straight)[22, NAMES[0]]
    shutil.rmtree(path) if loss == "absent" else harmed(path)
    train(config(), tmp_path / "run", ends=False, stops=(1000,))
    assert same_trees(averages(tmp_path / "run")[22, NAMES[0]], expected)


def test_the_interval_must_be_whole_dispatches():
    with pytest.raises(UsageError, match=r"ema\.snapshot_every_steps 4 .* train\.steps_per_dispatch 3"):
        Run(
            config(
                **dict.fromkeys(("train.steps_per_dispatch", "train.log_every_steps", "train.num_steps"), 3)
                | {"mesh.data": 8}
            )
        )


def test_an_evaluation_during_training_needs_an_average_that_is_tracked():
    every = {"evaluate.every_steps": 10, "evaluate.num_steps": 2, "evaluate.every_num_samples": 8}
    Run(config(**every, **{"evaluate.ema": 0.1, "mesh.data": 8}))
    with pytest.raises(UsageError, match=r"evaluate.ema is 0.07, a width .* tracked: 0.999, width_0.05, width_0.1"):
        Run(config(**every, **{"evaluate.ema": 0.07, "mesh.data": 8}))


def test_large_arrays_of_power_function_averages_are_split_like_the_parameters():
    run = Run(config(**{"model.width": 256, "mesh.fsdp": 8}))
    state = create_state(run.build_state, run.mesh)
    for name in NAMES:
        assert jax.tree.map(lambda a: a.sharding, state.ema[name]) == jax.tree.map(lambda a: a.sharding, state.params)
    kernel = state.ema[NAMES[0]]["hidden_0_0"]["kernel"]
    assert np.prod(kernel.addressable_shards[0].data.shape) == kernel.size // 8


# Processes

COMMAND = (
    "train --config=experiments/mixture.py --config.data.num_examples=256 --config.train.batch_size=16 "
    "--config.train.steps_per_dispatch=5 --config.train.num_steps=100 --config.train.log_every_steps=50 "
    "--config.checkpoint.every_steps=20 --config.checkpoint.keep_last=1 --config.sample.every_steps=1000 "
    "--config.sample.per_cell=1 --config.sample.num_steps=2 --config.ema.widths=(0.05,0.1) "
    "--config.ema.snapshot_every_steps=5 --workdir={workdir} "
)


def unfinished(workdir):
    """The folders of snapshots that are being written."""
    return [path for path in (workdir / "snapshots").glob("*") if not path.name.isdecimal()]


@pytest.mark.soak
def test_a_kill_while_a_snapshot_is_written_loses_none_and_leaves_none_damaged(tmp_path):
    command = COMMAND + "--config.model.width=512 --config.model.depth=3"
    code, _, err = finish(start(command.format(workdir=tmp_path / "straight")))
    assert code == 0, err
    workdir, kills = tmp_path / "run", 0
    while kills < 2:
        process = start(command.format(workdir=workdir))
        least = kills * 45
        writing = lambda: any(int(path.name.split(".")[0]) > least for path in unfinished(workdir))  # noqa: B023
        while process.poll() is None and not writing():
            time.sleep(0.001)
        assert process.poll() is None
        process.kill()
        finish(process)
        kills += 1
        steps = [path.name for path in (workdir / "snapshots").glob("*") if path.name.isdecimal()]
        assert sorted(map(int, steps)) == sorted(complete_steps(workdir / "snapshots"))
    code, _, err = finish(start(command.format(workdir=workdir)))
    assert code == 0, err
    found, expected = averages(workdir), averages(tmp_path / "straight")
    assert sorted({step for step, _ in found}) == list(range(5, 101, 5))
    assert all(same_trees(found[key], expected[key]) for key in expected)
    assert not unfinished(workdir)


@pytest.mark.e2e
def test_two_processes_write_the_snapshots_of_one(tmp_path):
    command = COMMAND + "--config.model.width=256 --config.mesh.fsdp=2 --config.train.num_steps=40"
    try:
        ends = finish_all(start_several(command.format(workdir=tmp_path / "two"), 2))
    finally:
        end_all()
    ends.append(finish(start(command.replace("fsdp=2", "fsdp=1").format(workdir=tmp_path / "one"))))
    assert [code for code, _, _ in ends] == [0, 0, 0], "\n".join(err for _, _, err in ends)
    two, one = averages(tmp_path / "two"), averages(tmp_path / "one")
    assert two.keys() == one.keys()
    close = lambda a, b: np.allclose(a, b, rtol=0, atol=1e-6)
    assert jax.tree.all(jax.tree.map(close, two[5, NAMES[0]], one[5, NAMES[0]]))
