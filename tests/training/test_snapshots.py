"""Power-function averages and their snapshots while training."""

import shutil

import jax
import numpy as np
import pytest
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


def test_a_run_that_resumes_earlier_writes_later_snapshots_again(straight, tmp_path):
    train(config(**{"checkpoint.keep_last": 9}), tmp_path, (43,), ends=False)
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


def test_large_arrays_of_power_function_averages_are_split_like_the_parameters():
    run = Run(config(**{"model.width": 256, "mesh.fsdp": 8}))
    state = create_state(run.build_state, run.mesh)
    for name in NAMES:
        assert jax.tree.map(lambda a: a.sharding, state.ema[name]) == jax.tree.map(lambda a: a.sharding, state.params)
    kernel = state.ema[NAMES[0]]["hidden_0_0"]["kernel"]
    assert np.prod(kernel.addressable_shards[0].data.shape) == kernel.size // 8
