"""Averages of any width from the snapshots of a run, 2312.02696 §3 and appendix C."""

import json
import logging
import shutil

import jax
import numpy as np
import pytest
from runs import train
from tiny import mixture_config, same_trees

import cfgjax
from cfgjax.base.errors import UsageError
from cfgjax.cli.main import run_command
from cfgjax.runs.averages import find_average, load_params
from cfgjax.runs.checkpoint import restore_params
from cfgjax.runs.config import to_json
from cfgjax.runs.manifest import manifest_digest
from cfgjax.runs.power_averages import combination, exponent, inner_products, supported_widths
from cfgjax.runs.workdir import read_settings

STORED = [(t, width) for t in np.arange(1.0, 17) / 16 for width in (0.05, 0.1)]
GRID = np.linspace(0, 1, 400_001)


def profile(time, width):
    """p(τ) = (γ + 1) τ^γ / t^{γ+1} up to t on a grid."""
    gamma = exponent(width)
    return np.where(time >= GRID, (gamma + 1) * (GRID / time) ** gamma / time, 0)


def integral(values):
    return np.trapezoid(values, GRID)


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.1, 6.94), (12**-0.5, 0)])
def test_the_exponent_is_that_of_the_width(width, gamma):
    assert np.isclose(exponent(width), gamma, atol=0.005)
    p = profile(1.0, width)
    mean = integral(GRID * p)
    assert np.isclose(np.sqrt(integral((GRID - mean) ** 2 * p)), width, rtol=1e-4)


@pytest.mark.parametrize(("a", "b"), [((1.0, 0.05), (1.0, 0.1)), ((0.5, 0.05), (1.0, 0.1)), ((1.0, 0.05), (0.75, 0.1))])
def test_inner_products_are_integrals(a, b):
    found = inner_products(*(np.array([value]) for t, width in (a, b) for value in (t, exponent(width))))
    assert np.isclose(found, integral(profile(*a) * profile(*b)), rtol=1e-3)


@pytest.mark.parametrize("index", [0, 13, 30, 31])
def test_a_stored_profile_is_reproduced_exactly(index):
    time, width = STORED[index]
    weights, error = combination(STORED, time, np.array([width]))
    assert np.allclose(weights[:, 0], np.eye(len(STORED))[index], atol=1e-9)
    assert error < 1e-6


@pytest.mark.parametrize("width", [0.02, 0.07, 0.2])
def test_the_error_is_the_distance_of_the_profiles(width):
    (weights,), (error,) = (found.T for found in combination(STORED, 1.0, np.array([width])))
    p = profile(1.0, width)
    made = sum(x * profile(*stored) for x, stored in zip(weights, STORED, strict=True))
    assert np.isclose(weights.sum(), 1)
    assert np.isclose(error, np.sqrt(integral((p - made) ** 2) / integral(p**2)), rtol=0.02)


def test_more_snapshots_support_more_widths():
    ranges = [supported_widths(STORED[-2 * count :], 1.0) for count in (1, 3, 8)]
    assert ranges[0][0] > ranges[1][0] >= ranges[2][0]
    assert ranges[0][1] < ranges[1][1] < ranges[2][1]


@pytest.mark.parametrize("width", [0.03, 0.07, 0.15])
def test_a_synthesised_average_of_a_path_is_that_tracked_directly(width):
    steps, path = np.arange(1, 20_001), np.log(np.arange(1, 20_001)) + np.sin(np.arange(1, 20_001) / 3000)

    def tracked(time, width):
        shares = (np.arange(time + 1) / time) ** (exponent(width) + 1)
        return np.diff(shares) @ path[:time]

    stored = [(float(t), w) for t in steps[999::1000] for w in (0.05, 0.1)]
    weights, _ = combination(stored, 20_000, np.array([width]))
    made = weights[:, 0] @ [tracked(int(t), w) for t, w in stored]
    assert np.isclose(made, tracked(20_000, width), rtol=1e-3)


# Runs

RUN = {"mesh.data": 1, "train.num_steps": 96, "train.log_every_steps": 48, "checkpoint.every_steps": 24}
RUN |= {"checkpoint.keep_last": 2, "ema.snapshot_every_steps": 8, "diffusion.logsnr_min": -4.0}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run that tracked four widths, of which its config has two."""
    path = tmp_path_factory.mktemp("averages") / "run"
    train(mixture_config(**RUN, **{"ema.widths": (0.05, 0.07, 0.1, 0.15)}), path)
    (path / "config.json").write_text(to_json(mixture_config(**RUN, **{"ema.widths": (0.05, 0.1)})))
    return path


def distance(a, b):
    squares = jax.tree.map(lambda x, y: np.sum(np.square(x - y, dtype=np.float64)), a, b)
    return np.sqrt(sum(jax.tree.leaves(squares)))


def read(workdir, step=None, ema=None):
    return load_params(workdir, read_settings(workdir), step, ema)[0]


@pytest.mark.slow
@pytest.mark.parametrize("step", [None, 72, 64])
@pytest.mark.parametrize("width", [0.07, 0.15])
def test_a_synthesised_average_of_a_run_is_that_tracked_directly(workdir, width, step):
    made, other = read(workdir, step, width), read(workdir, step, 0.1)
    stored = workdir / ("snapshots" if step == 64 else "checkpoints")
    tracked, _ = restore_params(stored, f"width_{width}", step)
    assert distance(made, tracked) < 0.05 * distance(other, tracked)
    assert jax.tree.map(lambda a: a.dtype, made) == jax.tree.map(lambda a: a.dtype, tracked)


@pytest.mark.slow
def test_a_stored_average_is_returned_bit_for_bit(workdir):
    expected = lambda folder, step: restore_params(workdir / folder, "width_0.05", step)[0]
    assert same_trees(read(workdir, 96, 0.05), expected("checkpoints", 96))
    assert same_trees(read(workdir, 16, 0.05), expected("snapshots", 16))  # whose checkpoint was pruned


@pytest.mark.slow
def test_a_checkpoint_between_two_snapshots_has_its_own_averages(workdir, tmp_path):
    run = shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(run / "snapshots" / "96")
    assert same_trees(read(run, 96, 0.07), read(workdir, 96, 0.07))


@pytest.mark.slow
def test_rates_and_no_averaging_are_as_without_widths(workdir):
    assert same_trees(read(workdir), restore_params(workdir / "checkpoints", "0.999")[0])
    assert same_trees(read(workdir, ema=0), restore_params(workdir / "checkpoints", None)[0])


@pytest.mark.slow
def test_a_model_of_a_width_says_so(workdir):
    model = cfgjax.load(workdir, step=64, ema=0.07)
    assert (model.step, model.ema) == (64, 0.07)
    assert "step 64, ema width 0.07" in repr(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "ema", "text"),
    [
        (
            None,
            0.7,
            r"^ema 0\.7 is neither a rate of the run \(0\.999, 0\) nor a width \(.* at most 0\.2887; .* 0\.05, 0\.1\)",
        ),
        (
            None,
            0.004,
            r"do not support the width 0\.004, .* relative error of \d+%; .* widths from 0\.0\d\d to 0\.2\d\d$",
        ),
        (
            65,
            0.07,
            r"no averages of step 65; the newest checkpoints are 72, 96, the newest snapshots before it .* 56, 64$",
        ),
        (65, 0.05, r"no averages of step 65"),
        (64, 0.999, r"there is no step 64 in .*checkpoints"),
        (0, 0.07, r"no averages of step 0"),
    ],
)
def test_an_average_that_cannot_be_made_is_a_one_line_error(workdir, step, ema, text):
    with pytest.raises(UsageError, match=text) as e:
        cfgjax.load(workdir, step=step, ema=ema)
    assert len(str(e.value).splitlines()) == 1


def test_a_run_without_widths_has_none(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(mixture_config().to_dict()))
    with pytest.raises(UsageError, match=r"ema 0.07 is neither a rate of the run \(0.999, 0\) nor a width .*has none"):
        cfgjax.load(tmp_path, ema=0.07)


@pytest.mark.slow
def test_few_snapshots_give_a_warning_with_the_error_once(workdir, tmp_path, caplog):
    run = shutil.copytree(workdir, tmp_path / "run")
    for step in (8, 16, 32, 40, 56, 64, 80):
        shutil.rmtree(run / "snapshots" / str(step))
    with caplog.at_level(logging.WARNING, "cfgjax"):
        for _ in range(2):
            read(run, ema=0.07)
        read(workdir, ema=0.07)
    (record,) = caplog.records
    assert "only 5 steps; the relative error of its profile is 1.1 %" in record.getMessage()


@pytest.mark.slow
def test_a_damaged_snapshot_is_reported_and_not_used(workdir, tmp_path, caplog):
    run = shutil.copytree(workdir, tmp_path / "run")
    (run / "snapshots" / "80" / "state" / "manifest.ocdbt").write_bytes(b"")
    made, expected = read(run, ema=0.07), read(workdir, ema=0.07)
    assert "80 is damaged" in caplog.text
    assert 0 < distance(made, expected) < 0.05 * distance(read(run, ema=0.1), expected)


@pytest.mark.slow
def test_an_average_does_not_change_when_training_continues(workdir, tmp_path):
    run = shutil.copytree(workdir, tmp_path / "run")
    settings = read_settings(run)
    before = find_average(run, settings, 72, 0.07).digest
    for step in (80, 88, 96):
        shutil.rmtree(run / "snapshots" / str(step))
    assert find_average(run, settings, 72, 0.07).digest == before
    assert find_average(run, settings, 64, 0.07).digest != before


@pytest.mark.slow
def test_sample_draws_columns_of_several_averages(workdir, tmp_path):
    words = f"sample --workdir={workdir} --num_steps=3 --per_cell=2 --guidance=0,1"
    assert run_command([*words.split(), "--ema=0.999,0.05,0.07", f"--out={tmp_path}/a.png"]) == 0
    with pytest.raises(UsageError, match="do not support the width"):
        run_command([*words.split(), "--ema=0.05,0.004", f"--out={tmp_path}/b.png"])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.slow
def test_a_frontier_over_widths_and_weights_is_resumable(workdir, tmp_path):
    run = shutil.copytree(workdir, tmp_path / "run")
    words = f"evaluate --workdir={run} --step=64 --ema=0.04,0.05,0.07 --guidance=0,1 --num_samples=40 --num_steps=4"
    assert run_command(words.split()) == 0
    result = json.loads((run / "evaluation" / "frontier.json").read_text())
    learned = [(row["ema"], row["guidance_weight"]) for row in result["rows"] if row["scores"] == "learned"]
    assert sorted(learned) == [(ema, w) for ema in (0.04, 0.05, 0.07) for w in (0.0, 1.0)]
    assert result["checkpoint"] == {"step": 64, "digest": manifest_digest(run / "snapshots", 64)}
    stored = {json.loads(path.read_text())["checkpoint"] for path in run.glob("evaluation/samples/*/setting.json")
              if "learned" in path.read_text()}  # fmt: skip
    assert len(stored) == 2  # of the snapshots, and of that which has the width 0.05
    files = {path: path.stat().st_mtime_ns for path in run.glob("evaluation/samples/*/*")}
    assert run_command(words.split()) == 0
    assert {path: path.stat().st_mtime_ns for path in run.glob("evaluation/samples/*/*")} == files
    with pytest.raises(UsageError, match="there is no step 64"):
        run_command([*words.split(), "--ema=0.07,0.999"])
