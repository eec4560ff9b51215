"""Laws of what is trained: with networks whose answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.process import eps_from_x
from cfgjax.runs.diffusion_settings import DiffusionSettings
from cfgjax.training.log import LAST, summarise
from cfgjax.training.objective import denoising, noisy_classification

N, K = 64, 10
IMAGE = jnp.asarray(np.random.default_rng(0).integers(0, 256, (N, 4, 4, 1)) / 127.5 - 1, jnp.float32)
BATCH = {"image": IMAGE, "label": jnp.arange(N) % K}
CONTINUOUS = dict(schedule="cosine", logsnr_min=-20.0, logsnr_max=20.0)
DISCRETE = dict(betas="cosine", num_timesteps=50)


class Network:
    """Answers out(z, time, label, **options) in place of a network."""

    def __init__(self, out, **fields):
        self.out, self.conditional, self.null_label = out, True, True
        self.__dict__.update(fields)

    def apply(self, variables, z, time, label=None, *, train, rngs, **options):
        self.given = dict(z=z, time=time, label=label, **options)
        return self.out(z, time, label, **options)


zero = lambda channels: lambda z, *given, **options: jnp.zeros((*z.shape[:-1], channels))


def step(objective, batch=BATCH, seed=0):
    """(drawn, terms, summary) of one batch."""
    drawn = objective.draw(jax.random.key(seed), batch, objective.init())
    terms = objective.terms({}, drawn, jax.random.key(1))
    return drawn, terms, objective.summary(terms, drawn)


def test_in_discrete_time_levels_come_from_the_table_and_networks_take_the_timestep():
    net, diffusion = Network(zero(1)), DiffusionSettings(**DISCRETE)
    drawn, _, _ = step(denoising(net, K, diffusion))
    assert set(np.asarray(drawn["logsnr"])) <= set(diffusion.levels.table.astype(np.float32))
    t = np.asarray(net.given["time"])
    np.testing.assert_array_equal(t, np.round(t))
    np.testing.assert_array_equal(diffusion.levels.table.astype(np.float32)[t.astype(int)], drawn["logsnr"])


@pytest.mark.slow
@pytest.mark.parametrize("process", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
def test_a_learned_variance_adds_the_bound_and_both_are_logged(process):
    diffusion = DiffusionSettings(**process, learned_variance=True, bound_weight=0.5)
    _, terms, summary = step(denoising(Network(zero(2)), K, diffusion))
    np.testing.assert_allclose(terms["loss"], terms["mse"] + 0.5 * terms["bound"], rtol=1e-6)
    assert np.isfinite(terms["bound"]).all()
    assert summary["bound"] == pytest.approx(float(terms["bound"].mean()))


def test_a_network_without_labels_logs_no_conditional_loss():
    objective = denoising(Network(zero(1), conditional=False), K, DiffusionSettings(**CONTINUOUS))
    assert not {"loss_cond", "drop_rate"} & step(objective)[2].keys()
    with pytest.raises(UsageError, match=r"p_uncond is 0.1; the network has no labels or no null label"):
        denoising(Network(zero(1), null_label=False), K, DiffusionSettings(**CONTINUOUS, p_uncond=0.1))


def test_the_network_takes_small_images_with_the_level_of_their_noise():
    low_res = IMAGE[:, ::2, ::2]
    plain = Network(zero(1), low_res=True)
    step(denoising(plain, K, DiffusionSettings(**CONTINUOUS)), BATCH | {"low_res": low_res})
    np.testing.assert_array_equal(plain.given["low_res"], low_res)

    noisy = Network(zero(1), low_res=True, low_res_noise=True)
    diffusion = DiffusionSettings(**CONTINUOUS, low_res_logsnr_min=0.0)
    drawn, _, _ = step(denoising(noisy, K, diffusion), BATCH | {"low_res": low_res})
    assert (drawn["cond"]["low_res_logsnr"] >= 0).all() and (drawn["cond"]["low_res_logsnr"] <= 20).all()
    noise = eps_from_x(noisy.given["low_res"], low_res, drawn["cond"]["low_res_logsnr"])
    assert 0.9 < noise.std() < 1.1
    with pytest.raises(UsageError, match="low_res_noise is True, diffusion.low_res_logsnr_min None: give both"):
        denoising(noisy, K, DiffusionSettings(**CONTINUOUS))


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["cosine", "normal(mean=0.8, std=2)"])
@pytest.mark.parametrize("weighting", ["eps", "min_snr"])
def test_levels_drawn_by_the_second_moment_do_not_change_the_mean_loss(schedule, weighting):
    process = CONTINUOUS | {"schedule": schedule, "weighting": weighting}
    error = lambda z, time, *given: jnp.broadcast_to((time / 1000)[:, None, None, None], z.shape)
    uniform, by_moment = (
        denoising(Network(error), K, DiffusionSettings(**process, time_sampler=name))
        for name in ("uniform", "second_moment")
    )
    history = by_moment.init()
    u = jnp.tile(jnp.arange(1000) / 1000 + 5e-4, 10)  # until every bin has seen ten losses
    history = by_moment.observe(history, {"unweighted": u**2 + 1}, {"u": u})
    batch = {"image": jnp.tile(IMAGE, (64, 1, 1, 1)), "label": jnp.tile(BATCH["label"], 64)}
    drawn = by_moment.draw(jax.random.key(0), batch, history)
    assert np.unique(np.asarray(drawn["weight"]).round(5)).size > 100
    means = {}
    for name, objective, given in (("uniform", uniform, ()), ("moment", by_moment, history)):
        drawn = objective.draw(jax.random.key(0), batch, given)
        loss = np.asarray(objective.terms({}, drawn, jax.random.key(1))["loss"])
        means[name] = loss.mean(), loss.std() / np.sqrt(len(loss))
    (a, sa), (b, sb) = means.values()
    assert abs(a - b) < 4 * np.hypot(sa, sb)


def test_a_noisy_classifier_takes_the_level_and_its_accuracy_is_reported_by_level():
    right_when_clean = lambda z, time: jnp.where(time[:, None] < 500, 9.0, -9.0) * jax.nn.one_hot(jnp.arange(N) % K, K)
    net = Network(lambda z, time, label: right_when_clean(z, time))
    drawn, terms, summary = step(noisy_classification(net, DiffusionSettings(**CONTINUOUS)))
    np.testing.assert_array_equal(terms["correct"], drawn["u"] < 0.5)
    assert [float(summary[f"accuracy_{i}"]) for i in range(4)] == [1, 1, 0, 0]
    assert (np.asarray(terms["loss"])[np.asarray(drawn["u"] > 0.5)] > 1).all()


def test_a_level_without_examples_has_no_accuracy_and_no_division_by_zero():
    summary = noisy_classification(Network(None), DiffusionSettings(**CONTINUOUS)).summary
    u, correct = jnp.array([0.1, 0.2, 0.3]), jnp.array([1.0, 0.0, 1.0])
    with jax.debug_nans(True):
        found = jax.jit(summary)({"correct": correct}, {"u": u})
    assert [float(found[f"accuracy_{i}"]) for i in range(4)] == [0.5, 1, 0, 0]
    steps = [{name: float(value) for name, value in found.items()} | dict.fromkeys(("skipped", *LAST), 0.0)]
    assert {"accuracy_0", "accuracy_1"} == {name for name in summarise(steps) if name.startswith("accuracy_")}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, r"needs schedule, .* or betas, .*; neither given"),
        (CONTINUOUS | DISCRETE, "schedule, logsnr_min, logsnr_max, betas, num_timesteps given"),
        ({"betas": "cosine"}, "lacks num_timesteps"),
        ({"betas": "cubic", "num_timesteps": 10}, "betas"),
        ({"betas": "linear", "num_timesteps": 10}, "config.diffusion: "),
        ({"betas": "cosine", "num_timesteps": 1}, "num_timesteps is 1; need at least 2"),
        (CONTINUOUS | {"logsnr_min": 30.0}, "logsnr_min 30.0 is not below diffusion.logsnr_max 20.0"),
        (CONTINUOUS | {"time_sampler": "lognormal"}, "time sampler"),
    ],
)
def test_an_invalid_process_is_reported_on_one_line(given, told):
    with pytest.raises(UsageError, match=told):
        DiffusionSettings(**given)
