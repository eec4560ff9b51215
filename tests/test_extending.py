"""What a user's notebook adds from outside the package, through the public API."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import digits_config, mixture_config, settings

import cfgjax
from cfgjax.base.errors import UsageError
from cfgjax.cli.main import run_command
from cfgjax.data.sources.registry import SOURCES, mixture_of
from cfgjax.diffusion.guidance import Denoiser, branches
from cfgjax.diffusion.prediction import PARAMETRISATIONS, Parametrisation, add_to_eps
from cfgjax.diffusion.process import alpha_sigma, broadcast_left, diffuse
from cfgjax.diffusion.schedules import SCHEDULES
from cfgjax.diffusion.specs import tree
from cfgjax.diffusion.weightings import WEIGHTINGS
from cfgjax.distributed.collectives import summed
from cfgjax.evaluation.metrics import METRICS
from cfgjax.models.model import Model
from cfgjax.nets import NETS
from cfgjax.training.extensions import ExtensionError
from cfgjax.training.run import Run


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


@pytest.mark.slow
def test_a_custom_writer_receives_the_metrics_of_metrics_jsonl_and_the_pictures(tmp_path):
    memory = Memory()
    final = cfgjax.train(mixture_config(), tmp_path / "run", writers=[memory]).metrics
    written = [{"step": step, **metrics} for step, metrics in memory.lines]
    assert lines(tmp_path / "run") == written
    assert memory.closed and {name for _, name, _ in memory.pictures} == {"samples"}
    assert final["step"] == mixture_config().train.num_steps
    assert final["loss"] == written[-1]["loss"]


@pytest.mark.slow
def test_a_hook_receives_the_state_at_its_steps_and_at_the_last_one(tmp_path):
    seen = []
    config = mixture_config()
    hook = Every(20, lambda state, step, workdir, log: seen.append((step, int(state.step))))
    cfgjax.train(config, tmp_path / "run", hooks=[hook])
    last = config.train.num_steps
    assert seen == [(step, step) for step in range(1, last + 1) if step % 20 == 0 or step == last]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "step"), [("hook", 20), ("writer", 10)])
def test_a_run_whose_extension_fails_is_saved_and_resumes_to_the_same_result(kind, step, tmp_path):
    config = mixture_config()
    straight = cfgjax.train(config, tmp_path / "straight").metrics
    broken = Every(20, fails)
    broken.write = fails
    added = {"hook": {"hooks": [broken]}, "writer": {"writers": [broken]}}[kind]
    said = f"{kind} Every failed at step {step}: ZeroDivisionError.*step {step} is saved"
    with pytest.raises(ExtensionError, match=said):
        cfgjax.train(config, tmp_path / "run", **added)
    steps = {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()}
    assert max(steps) == step
    final = cfgjax.train(config, tmp_path / "run").metrics
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
def test_an_invalid_extension_is_refused_before_anything_is_written(added, said, tmp_path):
    config = mixture_config(**{"train.steps_per_dispatch": 10})
    with pytest.raises(UsageError, match=said):
        cfgjax.train(config, tmp_path / "run", **added)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_custom_data_source_can_be_trained_on(tmp_path, monkeypatch):
    def circle(*, num_examples, radius=1.0):
        angle = np.linspace(0, 2 * np.pi, num_examples, endpoint=False)
        points = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return points.astype(np.float32), (angle > np.pi).astype(np.int32)

    monkeypatch.setitem(SOURCES, "circle", circle)
    config = mixture_config(**{"sample.labels": (0, 1)})
    with config.unlocked():
        config.data = {"source": "circle", "split": "all", "num_classes": 2, "image_shape": (2,), "num_examples": 256}
    assert np.isfinite(cfgjax.train(config, tmp_path / "run").metrics["loss"])


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
    mixture = mixture_of(settings(config).data)
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


def test_a_custom_rule_may_have_a_memory():
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
def test_a_custom_multistep_sampler_works():
    points = exact_model().sample_float([0, 1, 2], 0.5, sampler=multistep(), num_steps=16)
    assert np.isfinite(points).all()

    mixture, label = mixture_of(settings(mixture_config()).data), jnp.arange(48) % 3
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


def two_steps(config, **sections):
    """The config with 2 steps, logged and saved once, and with the values of sections, {section: {key: value}}."""
    short = {"num_steps": 2, "log_every_steps": 2, "steps_per_dispatch": 1}
    sections = {"sample": {}, **sections, "train": short, "checkpoint": {"every_steps": 2}}
    sections["sample"] = {"every_steps": 2, "num_steps": 2, **sections["sample"]}
    for name, values in sections.items():
        config[name].update(values)
    return config


def from_difference(output, z, logsnr):
    """(x̂, ε̂) of a network that predicts x − ε."""
    alpha, sigma = alpha_sigma(broadcast_left(logsnr, z))
    return (z + sigma * output) / (alpha + sigma), (z - alpha * output) / (alpha + sigma)


def quadratic(u, logsnr_min=-20.0, logsnr_max=20.0, *, xp=jnp):
    """λ = λmax + u² (λmin − λmax)."""
    return logsnr_max + xp.asarray(u) ** 2 * (logsnr_min - logsnr_max)


@pytest.fixture(scope="module")
def difference_run(tmp_path_factory):
    """(workdir, model) of two steps of training to predict x − ε, on a level schedule of one's own."""
    workdir = tmp_path_factory.mktemp("difference") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PARAMETRISATIONS, "difference", Parametrisation(from_difference))
        patch.setitem(SCHEDULES, "quadratic", quadratic)
        diffusion = {"parametrisation": "difference", "schedule": "quadratic", "logsnr_min": -20.0, "logsnr_max": 20.0}
        cfgjax.train(two_steps(mixture_config(), diffusion=diffusion), workdir)
        yield workdir, cfgjax.load(workdir)


@pytest.mark.parametrize("logsnr", [-20.0, -3.0, 0.0, 20.0])
def test_a_custom_parametrisation_is_accurate_at_both_ends(logsnr):
    x, eps = jax.random.normal(jax.random.key(0), (2, 64, 2))
    z = diffuse(x, eps, logsnr)
    found = Parametrisation(from_difference)(x - eps, z, jnp.full(64, logsnr))
    np.testing.assert_allclose(found.x, x, atol=2e-6)
    np.testing.assert_allclose(found.eps, eps, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("logsnr", [-20.0, 0.0, 20.0])
def test_a_network_with_another_parametrisation_predicts_a_pair_that_adds_up_to_z(difference_run, logsnr):
    _, model = difference_run
    z = jax.random.normal(jax.random.key(1), (8, 2))
    x, eps, _ = model.predict(z, logsnr, 1)
    np.testing.assert_allclose(diffuse(x, eps, logsnr), z, atol=1e-5)
    assert jnp.abs(x).max() < 10  # x̂ = (z − σ ε̂)/α of an error in ε̂ would be 22026 times that
    assert np.isfinite(model.sample([0, 1, 2], 1.0, num_steps=4)).all()


@pytest.mark.slow
def test_sampling_uses_the_levels_of_a_custom_schedule(difference_run):
    np.testing.assert_allclose(difference_run[1].grid(5), [-20, -2.5, 10, 17.5, 20], rtol=1e-6)


@pytest.mark.slow
def test_a_network_with_another_parametrisation_is_not_exported_as_one_of_eps(difference_run, tmp_path):
    with pytest.raises(UsageError, match="predicts 'difference'; guided-diffusion's predict 'eps'"):
        run_command(["convert", "to-openai-adm", f"--workdir={difference_run[0]}", f"--out={tmp_path / 'weights.npz'}"])


def test_evaluations_refuse_a_vector(vector_config, tmp_path):
    vector_config.evaluate.update({"every_steps": 2, "features": "inception"})
    with pytest.raises(UsageError, match=r"cannot give samples the conditions besides the label \(vector\)"):
        cfgjax.train(vector_config, tmp_path / "run")


@pytest.mark.slow
def test_a_custom_weighting_is_a_factor_on_the_loss(tmp_path, monkeypatch):
    monkeypatch.setitem(WEIGHTINGS, "none", lambda logsnr: 0 * logsnr)
    config = two_steps(mixture_config(), diffusion={"weighting": "none"})
    assert cfgjax.train(config, tmp_path / "run").metrics["loss"] == 0


@pytest.mark.parametrize("key", ["parametrisation", "weighting", "schedule"])
def test_an_unknown_name_is_reported_on_one_line_with_the_nearest_one(key, tmp_path):
    config = two_steps(mixture_config(), diffusion={key: "epz" if key != "schedule" else "cosin"})
    with pytest.raises(UsageError, match=f"unknown {key} '.*', did you mean '(eps|cosine)'"):
        cfgjax.train(config, tmp_path / "run")


class OneBlock(nn.Module):
    """A network of one's own: two convolutions, conditioned by addition."""

    out_channels: int
    num_classes: int
    width: int = 8

    @nn.compact
    def __call__(self, z, time, label, *, train=False):
        condition = nn.Embed(self.num_classes + 1, self.width)(label) + nn.Dense(self.width)(time[:, None] / 1000)
        h = nn.silu(nn.Conv(self.width, (3, 3))(z) + condition[:, None, None])
        return nn.Conv(self.out_channels, (3, 3))(h)


@pytest.mark.slow
def test_a_custom_network_trains_on_images(tmp_path, monkeypatch):
    monkeypatch.setitem(NETS, "one_block", OneBlock)
    config = two_steps(digits_config())
    config.model = {"name": "one_block", "width": 4}
    cfgjax.train(config, tmp_path / "run")
    model = cfgjax.load(tmp_path / "run")
    images = model.sample([1, 2], 1.0, num_steps=3)
    assert (images.shape, images.dtype) == ((2, 8, 8, 1), np.uint8)
    assert (tmp_path / "run" / "samples" / "step_00000002.png").exists()
    assert repr(model) == "Model(one_block, digits 8×8×1, 10 classes, step 2, ema 0.99)"


def latents(*, num_examples):
    """Unbounded arrays of four channels, as an autoencoder's."""
    rng = np.random.default_rng(0)
    return rng.normal(0, 3, (num_examples, 4, 4, 4)).astype(np.float32), np.arange(num_examples, dtype=np.int32) % 2


@pytest.fixture
def latent_config(monkeypatch):
    monkeypatch.setitem(NETS, "one_block", OneBlock)
    monkeypatch.setitem(SOURCES, "latents", latents)
    config = two_steps(digits_config(), sample={"labels": (0, 1)})
    config.model = {"name": "one_block"}
    config.data = {"source": "latents", "kind": "latent", "num_classes": 2, "image_shape": (4, 4, 4)}
    config.data.num_examples = 64
    return config


@pytest.mark.slow
def test_latents_are_neither_clipped_nor_rounded_nor_drawn(latent_config, tmp_path, capsys):
    memory = Memory()
    cfgjax.train(latent_config, tmp_path / "run", writers=[memory])
    assert not memory.pictures and not list(tmp_path.rglob("*.png"))
    found = cfgjax.load(tmp_path / "run").sample([0, 1, 1], 1.0, num_steps=4)
    assert (found.shape, found.dtype) == ((3, 4, 4, 4), np.float32)
    assert np.abs(found).max() > 1
    with pytest.raises(UsageError, match="data.kind is 'latent'.*cannot be drawn"):
        run_command(["sample", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'grid.png'}"])
    assert not (tmp_path / "grid.png").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"random_flip": True}, "for images; data.kind is 'latent'"),
        ({"kind": "latents"}, "data.kind is 'latents'; need 'image' or 'latent'"),
        ({"kind": "image"}, "outside \\[-1, 1\\]"),
    ],
)
def test_latents_that_do_not_fit_the_config_are_refused(latent_config, changed, said, tmp_path):
    latent_config.data.update(changed)
    with pytest.raises(UsageError, match=said):
        cfgjax.train(latent_config, tmp_path / "run")


class Told(nn.Module):
    """A network that takes a vector besides the label."""

    out_channels: int
    num_classes: int

    def condition(self, batch):
        return {"vector": jnp.zeros((batch, 3))}

    def null(self, cond):
        return {**cond, "vector": jnp.zeros_like(cond["vector"])}

    @nn.compact
    def __call__(self, z, time, label, *, vector, train=False):
        h = nn.Dense(16)(jnp.concatenate([z, time[:, None] / 1000, vector], axis=1))
        return nn.Dense(self.out_channels)(nn.silu(h + nn.Embed(self.num_classes + 1, 16)(label)))


def described_points(*, num_examples):
    """Points with a label and a vector each: the vector has the point and a one."""
    points = np.random.default_rng(0).normal(size=(num_examples, 2)).astype(np.float32)
    ones = np.ones((num_examples, 1), np.float32)
    return points, (points[:, 0] > 0).astype(np.int32), {"vector": np.concatenate([points, ones], axis=1)}


@pytest.fixture
def vector_config(monkeypatch):
    monkeypatch.setitem(NETS, "told", Told)
    monkeypatch.setitem(SOURCES, "described", described_points)
    config = two_steps(mixture_config(), sample={"labels": (0, 1)}, diffusion={"p_uncond": 0.5})
    config.model = {"name": "told"}
    config.data = {"source": "described", "num_classes": 2, "image_shape": (2,), "num_examples": 64}
    return config


def test_a_vector_stays_with_its_example_and_is_dropped_with_the_label(vector_config):
    run = Run(vector_config)
    batch = jax.tree.map(lambda a: a[0], run.batches(0))
    np.testing.assert_array_equal(batch["vector"][:, :2], batch["image"])
    drawn = run.objective.draw(jax.random.key(0), batch, ())
    dropped = np.asarray(drawn["cond"]["label"] == 2)
    assert 0 < dropped.sum() < len(dropped)
    np.testing.assert_array_equal(drawn["cond"]["vector"], np.where(dropped[:, None], 0, batch["vector"]))
    like = run.abstract_batches(1)
    assert {name: (a.shape[1:], a.dtype) for name, a in like.items()} == jax.tree.map(
        lambda a: (a.shape, a.dtype), batch, is_leaf=lambda a: hasattr(a, "shape")
    )


@pytest.mark.slow
def test_guidance_works_on_a_vector_as_on_the_label(vector_config, tmp_path):
    cfgjax.train(vector_config, tmp_path / "run")
    model, labels = cfgjax.load(tmp_path / "run"), [0, 1, 1, 0]
    vectors = np.random.default_rng(1).normal(size=(2, 4, 3))
    draw = lambda vector, w: model.sample(labels, w, conditions={"vector": vector}, num_steps=3)
    np.testing.assert_allclose(draw(vectors[0], -1.0), draw(vectors[1], -1.0), atol=1e-5)
    assert np.abs(draw(vectors[0], 0.0) - draw(vectors[1], 0.0)).max() > 1e-3
    z = np.zeros((4, 2), np.float32)
    told = [model.predict(z, 0.0, labels, conditions={"vector": vector}).eps for vector in vectors]
    assert np.abs(told[0] - told[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        (None, "besides the label are none; the network takes vector"),
        ({"vectr": np.zeros((2, 3))}, "are vectr; the network takes vector"),
        ({"vector": np.zeros((2, 4))}, "condition vector is float64\\[2, 4\\]; need float32\\[2, 3\\]"),
        ({"vector": np.full((2, 3), np.nan)}, "condition vector has a value that is not finite"),
    ],
)
def test_conditions_that_do_not_fit_are_a_one_line_error(vector_config, conditions, said):
    model = Model(vector_config, {})
    with pytest.raises(UsageError, match=said):
        model.sample([0, 1], 1.0, conditions=conditions)


def test_a_source_without_the_vector_is_refused_before_training(vector_config, tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "described", lambda *, num_examples: described_points(num_examples=num_examples)[:2])
    with pytest.raises(UsageError, match="are none; the network takes vector"):
        cfgjax.train(vector_config, tmp_path / "run")


class MeanRadius:
    """A metric of one's own: the mean distance of the samples from the origin."""

    def __init__(self, network, reference):
        self.sums = {"radius": np.zeros(()), "count": np.zeros(())}

    def update(self, labels, samples, outputs):
        self.sums["radius"] += np.linalg.norm(samples.reshape(len(samples), -1), axis=1).sum()
        self.sums["count"] += len(samples)

    def metrics(self):
        sums = summed(self.sums)
        return {"radius": float(sums["radius"] / sums["count"])}


@pytest.mark.slow
def test_a_custom_metric_reaches_table_files_writers_and_tensorboard(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(METRICS, "radius", MeanRadius)
    evaluate = {"every_steps": 2, "every_num_samples": 32, "every_guidance": (1.0,), "num_steps": 4}
    memory = Memory()
    cfgjax.train(two_steps(mixture_config(), evaluate=evaluate), tmp_path / "run", writers=[memory])
    values = [metrics["radius/w=1"] for _, metrics in memory.lines if "radius/w=1" in metrics]
    assert len(values) == 1 and values[0] > 0
    assert any(line.get("radius/w=1") == values[0] for line in lines(tmp_path / "run"))
    assert any(b"radius/w" in path.read_bytes() for path in (tmp_path / "run").glob("events*"))

    capsys.readouterr()
    flags = ["--guidance=0,1", "--num_samples=32", "--num_steps=4", f"--out={tmp_path / 'out'}"]
    assert run_command(["evaluate", f"--workdir={tmp_path / 'run'}", *flags]) == 0
    assert "  radius" in capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "frontier.json").read_text())["rows"]
    assert all(row["radius"] > 0 for row in rows)
    assert "radius" in (tmp_path / "out" / "frontier.csv").read_text().splitlines()[0].split(",")
