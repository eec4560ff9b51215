import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cfgjax.base.errors import UsageError
from cfgjax.runs.power_averages import exponent
from cfgjax.runs.training_settings import OptimizerSettings
from cfgjax.training import ema
from cfgjax.training.optim import learning_rate_schedule, make_optimizer


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_warm_up_is_linear_and_the_decay_ends_at_zero(schedule):
    rate = learning_rate_schedule(2.0, schedule, warmup_steps=10, decay_steps=110)
    assert [float(rate(step)) for step in (0, 5, 10)] == [0, 1, 2]
    assert np.isclose(rate(60), 1)  # half-way down
    assert np.isclose(rate(35), 1.5 if schedule == "linear" else 1 + np.sqrt(0.5))
    assert float(rate(110)) == float(rate(1000)) == 0


def test_a_constant_schedule_does_not_change():
    assert float(learning_rate_schedule(2.0)(10**6)) == 2
    assert float(learning_rate_schedule(2.0, warmup_steps=4)(10**6)) == 2


def test_adamw_decays_weights_apart_from_the_gradient():
    params = {"w": jnp.ones(3)}
    optimizer = make_optimizer(OptimizerSettings(name="adamw", learning_rate=0.1, weight_decay=0.5))
    updates, _ = optimizer.update({"w": jnp.zeros(3)}, optimizer.init(params), params, finite=True)
    assert np.allclose(optax.apply_updates(params, updates)["w"], 1 - 0.1 * 0.5)


def test_adams_first_step_is_the_learning_rate():
    params = {"w": jnp.zeros(2)}
    optimizer = make_optimizer(OptimizerSettings(name="adam", learning_rate=0.1))
    updates, _ = optimizer.update({"w": jnp.array([3.0, -0.01])}, optimizer.init(params), params, finite=True)
    assert np.allclose(updates["w"], [-0.1, 0.1], rtol=1e-4)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_step_with_non_finite_gradients_only_changes_the_counts(clip_norm):
    params = {"w": jnp.ones(2)}
    ours = make_optimizer(OptimizerSettings(name="adamw", learning_rate=0.1, weight_decay=0.5, clip_norm=clip_norm))
    inner = optax.adamw(optax.constant_schedule(0.1), weight_decay=0.5)
    theirs = optax.apply_if_finite(optax.chain(optax.clip_by_global_norm(clip_norm), inner) if clip_norm else inner, 99)
    states = [ours.init(params), theirs.init(params)]
    for value in (3.0, jnp.nan, jnp.inf, -1.0):
        grads = {"w": jnp.array([value, 0.5])}
        update, states[0] = ours.update(grads, states[0], params, finite=jnp.isfinite(value))
        expected, states[1] = theirs.update(grads, states[1], params)
        assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
        for found, known in zip(
            jax.tree.leaves((update, states[0])), jax.tree.leaves((expected, states[1])), strict=True
        ):
            assert np.allclose(found, known, rtol=1e-6)
    assert (states[0].notfinite_count, states[0].total_notfinite) == (0, 2)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"name": "adm"}, "unknown optimizer 'adm', did you mean 'adam'"),
        ({"name": "adam", "weight_decay": 0.1}, "which adam does not apply; use adamw"),
        ({"name": "adam", "schedule": "lineer"}, "unknown optimizer.schedule 'lineer'"),
        ({"name": "adam", "schedule": "linear"}, "decay_steps is None; linear needs more than warmup_steps 0"),
        ({"name": "adam", "schedule": "cosine"}, "decay_steps is None"),
        ({"name": "adam", "schedule": "cosine", "warmup_steps": 9, "decay_steps": 9}, "decay_steps is 9"),
    ],
)
def test_contradictory_options_are_reported(options, told):
    with pytest.raises(UsageError, match=told):
        make_optimizer(OptimizerSettings(learning_rate=0.1, **options))


def test_an_average_of_constant_parameters_is_constant():
    params = {"w": jnp.full(3, 7.0)}
    average = ema.init(params, ("0.9", "0.999"))
    for step in range(5):
        average = ema.update(average, params, step, warmup=True)
    assert all(np.array_equal(tree["w"], params["w"]) for tree in average.values())


def test_the_weight_of_the_initial_value_is_a_power_of_the_rate():
    average = ema.init({"w": jnp.ones(1)}, ("0.9", "0.5"))
    for step in range(10):
        average = ema.update(average, {"w": jnp.zeros(1)}, step, warmup=False)
    assert np.allclose([average["0.9"]["w"][0], average["0.5"]["w"][0]], [0.9**10, 0.5**10])


def test_warm_up_starts_with_smaller_rates_and_ends_at_the_rate():
    start, later = {"w": jnp.ones(1)}, {"w": jnp.zeros(1)}
    once = lambda step, warmup: float(ema.update({"0.99": start}, later, step, warmup=warmup)["0.99"]["w"][0])
    assert np.isclose(once(0, True), 1 / 10)
    assert once(0, True) < once(20, True) < once(0, False)
    assert np.isclose(once(10_000, True), 0.99)


@pytest.mark.parametrize("width", [0.05, 0.1, 12**-0.5])
def test_a_power_function_average_weights_step_i_by_the_power_of_its_share_of_the_run(width):
    values = np.random.default_rng(0).normal(size=50)
    name, gamma = f"width_{width}", exponent(width)
    average = ema.init({"w": jnp.full(1, 1e3)}, (name,))  # which the first step replaces
    for step, value in enumerate(values):
        average = ema.update(average, {"w": jnp.full(1, value)}, step, warmup=True)
    shares = (np.arange(51) / 50) ** (gamma + 1)
    assert np.isclose(average[name]["w"][0], np.diff(shares) @ values, rtol=1e-5)


def test_the_share_of_a_late_step_keeps_its_digits():
    t, gamma = 10_000_000, exponent(0.05)
    exact = -math.expm1((gamma + 1) * math.log1p(-1 / t))
    assert np.isclose(ema.share("width_0.05", t - 1, warmup=False), exact, rtol=1e-5)
