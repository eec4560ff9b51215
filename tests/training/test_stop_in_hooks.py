"""A stop signal in a long hook: the step is saved, and the hook is called again when the run resumes."""

import contextlib
import json
from types import SimpleNamespace

import jax
import pytest
from runs import metrics
from tiny import mixture_config

from cfgjax.runs.workdir import Claim
from cfgjax.training.hooks import frontier_metrics
from cfgjax.training.log import RunLog
from cfgjax.training.loop import fit
from cfgjax.training.run import Run

STEPS = {"train.num_steps": 8, "train.log_every_steps": 8, "checkpoint.every_steps": 8, "mesh.data": 1}
EVALUATED = {
    "evaluate.every_steps": 4,
    "evaluate.num_steps": 2,
    "evaluate.every_num_samples": 8,
    "evaluate.batch_size": 4,
}


def trained(config, workdir, stop=None, hooks=()):
    """The `Outcome` of one call."""
    run = Run(config, devices=jax.devices()[:1], hooks=hooks)
    run.config_hooks = [hook for hook in run.config_hooks if hook.section == "evaluate"]
    with contextlib.closing(Claim(workdir, run.settings, run.data_hash, run.dataset.classes)) as claim:
        return fit(run, claim, stop or SimpleNamespace(signal=None))


class Long:
    """A hook during which a signal is received, at the first call of a step."""

    every_steps = 4

    def __init__(self, stop, at):
        self.stop, self.at, self.began, self.ended = stop, at, [], []

    def __call__(self, state, step, workdir, runlog):
        self.began.append(step)
        if step == self.at and self.began.count(step) == 1:
            self.stop.signal = "SIGTERM"
        runlog.check_stop()
        self.ended.append(step)


@pytest.mark.parametrize("at", [4, 8])
def test_a_hook_ends_at_a_signal_and_is_called_again(at, tmp_path, capsys):
    config = mixture_config(**STEPS)
    trained(config, tmp_path / "straight")
    stop = SimpleNamespace(signal=None)
    hook = Long(stop, at)
    assert not trained(config, tmp_path / "stopped", stop, [hook]).done
    assert f"SIGTERM: saved step {at}; the same command resumes" in capsys.readouterr().out
    assert (tmp_path / "stopped" / "checkpoints" / str(at)).is_dir()
    stop.signal = None
    assert trained(config, tmp_path / "stopped", stop, [hook]).done
    assert hook.ended == [4, 8] and sorted(hook.began) == sorted([4, 8, at])
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "straight")


@pytest.mark.parametrize("part", ["drawing", "measuring"])
def test_an_evaluation_ends_at_a_signal_and_is_made_again(part, tmp_path, monkeypatch):
    config = mixture_config(**STEPS, **EVALUATED)
    trained(config, tmp_path / "straight")
    stop, name = SimpleNamespace(signal=None), {"drawing": "draw_samples", "measuring": "measure"}[part]
    original = getattr(frontier_metrics, name)

    def signalled(*args, **kwargs):
        stop.signal = "SIGTERM"
        return original(*args, **kwargs)

    monkeypatch.setattr(frontier_metrics, name, signalled)
    assert not trained(config, tmp_path / "stopped", stop).done
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir() if path.name.isdigit()] == ["4"]
    distances = lambda folder: (tmp_path / folder / "metrics.jsonl").read_text().count("FD-")
    assert distances("stopped") == 0 < distances("straight")
    monkeypatch.undo()
    assert trained(config, tmp_path / "stopped").done
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "straight")


def test_no_signal_ends_no_hook(tmp_path):
    config = mixture_config(**STEPS)
    log = RunLog(tmp_path, 0, Run(config, devices=jax.devices()[:1]).settings)
    log.check_stop()
    log.close()
    assert json.dumps(log.last) == '{"step": 0}'
