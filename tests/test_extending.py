"""What a user's notebook adds from outside the package, through the public API."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import mixture_config

import cfgjax
from cfgjax.base.errors import UsageError
from cfgjax.data.sources.registry import SOURCES, mixture_of
from cfgjax.diffusion.guidance import Denoiser, branches
from cfgjax.diffusion.prediction import add_to_eps
from cfgjax.diffusion.process import alpha_sigma
from cfgjax.diffusion.specs import tree
from cfgjax.models.model import Model
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


@pytest.mark.slow
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


def exact_model():
    """The `Model` of the exact predictions of the toy mixture."""
    config = mixture_config()
    mixture = mixture_of(config.data)
    predict = lambda z, logsnr, cond: mixture.predict(z, logsnr, cond["label"])
    return Model(config, {}, bind_params=lambda params: predict)


@tree
@dataclasses.dataclass(frozen=True)
class momentum:
    """Guidance along a direction that is averaged over the levels: a rule with memory."""

    beta: float = 0.5

    def __call__(self, predict, cond, null, w):
        def apply(z, logsnr, direction):
            with_cond, without = branches(predict, z, logsnr, (cond, null))
            direction = self.beta * direction + (1 - self.beta) * (with_cond.eps - without.eps)
            return add_to_eps(with_cond, w[:, None] * direction, logsnr), direction

        return Denoiser(apply, init=jnp.zeros_like)


def test_a_rule_of_ones_own_with_memory():
    model, labels = exact_model(), [0, 1, 2, 2]
    draw = lambda rule: model.sample_float(labels, 1.5, rule=rule, sampler="ddim()", num_steps=8, seed=1)
    np.testing.assert_allclose(draw(momentum(0.0)), draw("cfg()"), atol=1e-3)
    assert np.abs(draw(momentum(0.5)) - draw("cfg()")).max() > 1e-2


@tree
@dataclasses.dataclass(frozen=True)
class multistep:
    """DPM-Solver++(2M), arXiv:2211.01095 algorithm 2: a sampler that remembers the previous x̂."""

    draws_noise = False

    def evaluations(self, num_steps):
        return num_steps

    def init(self, z):
        return jnp.zeros_like(z), jnp.float32(0)  # the previous x̂ and the previous step in λ/2

    def step(self, denoise, z, state, level, noise):
        previous, h_previous = state
        x, h = denoise(z, level.logsnr).x, (level.logsnr_next - level.logsnr) / 2
        slope = jnp.where(level.step > 0, h / (2 * jnp.where(level.step > 0, h_previous, 1)), 0)
        estimate = x + slope * (x - previous)
        (_, sigma), (alpha_next, sigma_next) = alpha_sigma(level.logsnr), alpha_sigma(level.logsnr_next)
        return sigma_next / sigma * z - alpha_next * jnp.expm1(-h) * estimate, (x, h)


@pytest.mark.slow
def test_a_sampler_of_ones_own_with_several_steps():
    points = exact_model().sample_float([0, 1, 2], 0.5, sampler=multistep(), num_steps=16)
    assert np.isfinite(points).all()

    mixture, label = mixture_of(mixture_config().data), jnp.arange(48) % 3
    denoise = cfgjax.guidance.cfg()(mixture.predict, label, jnp.full(48, 3), 0.5)
    keys = jax.random.split(jax.random.key(1), 48)
    z = cfgjax.samplers.initial_noise(keys, (2,))
    draw = lambda sampler, T: cfgjax.samplers.sample(sampler, denoise, keys, z, np.linspace(-8, 8, T))
    for sampler, order in ((cfgjax.samplers.ddim(), 1), (multistep(), 2)):
        exact = draw(sampler, 1281)
        coarse, fine = (jnp.abs(draw(sampler, T) - exact).mean() for T in (41, 81))
        assert abs(np.log2(coarse / fine) - order) < 0.35, sampler


def test_a_trajectory_has_every_level_and_ends_at_the_sample():
    model = exact_model()
    samples, trajectory = model.sample([0, 1], 1.0, num_steps=6, return_trajectory=True)
    assert trajectory.x.shape == (6, 2, 2)
    np.testing.assert_array_equal(trajectory.x[-1], samples)
