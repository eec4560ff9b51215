"""What a user's notebook adds from outside the package, through the public API."""

import json

import numpy as np
import pytest
from tiny import mixture_config

import cfgjax
from cfgjax.base.errors import UsageError
from cfgjax.data.sources.registry import SOURCES
from cfgjax.training.extensions import ExtensionError


class Memory:
    """A writer that keeps the metrics in memory."""

    def __init__(self):
        self.lines, self.pictures, self.closed = [], [], False

    def write(self, step, metrics):
        self.lines.append((step, dict(metrics)))

    def image(self, step, name, picture):
        self.pictures.append((step, name, picture.shape))

    def close(self):
        self.closed = True


class Every:
    """A hook that calls a function every so many steps."""

    def __init__(self, every_steps, function):
        self.every_steps, self.function = every_steps, function

    def __call__(self, state, step, workdir, log):
        self.function(state, step, workdir, log)


def fails(*args):
    raise ZeroDivisionError("no such thing")


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_writer_gets_what_metrics_jsonl_gets_and_the_pictures(tmp_path):
    memory = Memory()
    final = cfgjax.train(mixture_config(), tmp_path / "run", writers=[memory])
    written = [{"step": step, **metrics} for step, metrics in memory.lines]
    assert lines(tmp_path / "run") == written
    assert memory.closed and {name for _, name, _ in memory.pictures} == {"samples"}
    assert final["step"] == mixture_config().train.num_steps
    assert final["loss"] == written[-1]["loss"]


def test_a_hook_sees_the_state_at_its_steps_and_at_the_last_one(tmp_path):
    seen = []
    config = mixture_config()
    hook = Every(20, lambda state, step, workdir, log: seen.append((step, int(state.step))))
    cfgjax.train(config, tmp_path / "run", hooks=[hook])
    last = config.train.num_steps
    assert seen == [(step, step) for step in range(1, last + 1) if step % 20 == 0 or step == last]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "step"), [("hook", 20), ("writer", 10)])
def test_a_run_whose_extension_fails_is_saved_first_and_resumes_to_the_same_end(kind, step, tmp_path):
    config = mixture_config()
    straight = cfgjax.train(config, tmp_path / "straight")
    broken = Every(20, fails)
    broken.write = fails
    added = {"hook": {"hooks": [broken]}, "writer": {"writers": [broken]}}[kind]
    said = f"{kind} Every failed at step {step}: ZeroDivisionError.*step {step} is saved"
    with pytest.raises(ExtensionError, match=said):
        cfgjax.train(config, tmp_path / "run", **added)
    steps = {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()}
    assert max(steps) == step
    final = cfgjax.train(config, tmp_path / "run")
    without_rate = lambda metrics: {name: value for name, value in metrics.items() if name != "images_per_second"}
    assert without_rate(final) == without_rate(straight)


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ({"hooks": [Every(0, fails)]}, "every_steps 0"),
        ({"hooks": [Every(None, fails)]}, "every_steps None"),
        ({"hooks": [Every(True, fails)]}, "every_steps True"),
        ({"hooks": [Every(7, fails)]}, "every_steps of hook Every 7"),
        ({"hooks": [3]}, "hook int cannot be called"),
        ({"writers": [3]}, "writer int has no method write"),
    ],
)
def test_an_extension_that_does_not_fit_is_refused_before_anything_is_written(added, said, tmp_path):
    config = mixture_config(**{"train.steps_per_dispatch": 10})
    with pytest.raises(UsageError, match=said):
        cfgjax.train(config, tmp_path / "run", **added)
    assert not list(tmp_path.iterdir())


def test_a_data_source_of_ones_own(tmp_path, monkeypatch):
    def circle(*, num_examples, radius=1.0):
        angle = np.linspace(0, 2 * np.pi, num_examples, endpoint=False)
        points = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return points.astype(np.float32), (angle > np.pi).astype(np.int32)

    monkeypatch.setitem(SOURCES, "circle", circle)
    config = mixture_config(**{"sample.labels": (0, 1)})
    with config.unlocked():
        config.data = {"source": "circle", "split": "all", "num_classes": 2, "image_shape": (2,), "num_examples": 256}
    assert np.isfinite(cfgjax.train(config, tmp_path / "run")["loss"])


def test_a_config_is_loaded_with_overrides_and_checked(tmp_path):
    config = cfgjax.load_config("experiments/mixture.py", **{"train.num_steps": 10, "sample.guidance": (0.0,)})
    assert (config.train.num_steps, config.sample.guidance) == (10, (0.0,))
    with pytest.raises(UsageError, match="unknown config key 'train.num_stpes'.*train.num_steps"):
        cfgjax.load_config("experiments/mixture.py", **{"train.num_stpes": 10})
    with pytest.raises(UsageError, match="train.num_steps"):
        cfgjax.load_config("experiments/mixture.py", **{"train.num_steps": "ten"})
