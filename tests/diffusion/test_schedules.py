"""Laws of the noise schedules and of λ as a network sees it."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.schedules import SCHEDULES, cosine, logsnr_grid, network_time, parse_schedule

U_TO_LOGSNR = {0: 20, 0.001: 12.8555, 0.01: 8.30135, 0.1: 3.68499, 0.25: 1.762619, 0.5: 0}
BOUNDS = [(-20.0, 20.0), (-5.0, 9.0), (-12.0, 3.0)]


def tangent_form(u, logsnr_min, logsnr_max):
    """−2 log tan(a u + b) as the paper writes it, in float64."""
    b = np.arctan(np.exp(-logsnr_max / 2))
    a = np.arctan(np.exp(-logsnr_min / 2)) - b
    return -2 * np.log(np.tan(a * np.asarray(u, np.float64) + b))


@pytest.mark.parametrize(("u", "logsnr"), U_TO_LOGSNR.items())
def test_the_cosine_schedule_takes_the_values_of_the_paper(u, logsnr):
    np.testing.assert_allclose(cosine(u), logsnr, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("text", ["cosine", "uniform", "logit_normal", "normal(mean=0, std=3)"])
def test_symmetric_bounds_give_an_antisymmetric_schedule(text):
    u, schedule = np.linspace(0, 1, 101), parse_schedule(text)
    np.testing.assert_allclose(schedule(u, xp=np), -schedule(1 - u, xp=np), atol=1e-10)


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_both_ends_are_exact_in_float32(schedule, bounds):
    ends = parse_schedule(schedule)(jnp.array([1.0, 0.0]), *bounds)
    assert ends.dtype == jnp.float32
    np.testing.assert_allclose(ends, bounds, rtol=2e-7)


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("end", ["clean", "noise"])
def test_float32_is_accurate_near_both_ends(end, bounds):
    steps = 2.0 ** -np.arange(1, 25, dtype=np.float32)
    u = steps if end == "clean" else 1 - steps
    np.testing.assert_allclose(cosine(jnp.asarray(u), *bounds), tangent_form(u, *bounds), rtol=1e-6, atol=2e-6)


NORMAL = {  # text: mean and standard deviation of λ
    "normal": (2.4, 2.4),
    "normal(mean=0.8, std=2)": (0.8, 2.0),
    "normal(mean=-3, std=0.5)": (-3.0, 0.5),
    "logit_normal": (0.0, 2.0),
    "logit_normal(mean=1, std=0.75)": (-2.0, 1.5),
}


@pytest.mark.parametrize("bounds", [*BOUNDS, (-7.0, 1e4)])
@pytest.mark.parametrize("text", NORMAL)
def test_a_normal_schedule_has_the_quantiles_of_the_truncated_distribution(text, bounds):
    mean, std = NORMAL[text]
    p = np.linspace(0, 1, 65)[1:-1]
    exact = stats.truncnorm(*(np.subtract(bounds, mean) / std), mean, std).ppf(p)
    np.testing.assert_allclose(parse_schedule(text)(1 - p, *bounds, xp=np), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("text", NORMAL)
def test_a_normal_schedule_is_accurate_in_float32_near_both_ends(text, bounds):
    steps = 2.0 ** -np.arange(1, 25)
    for u in (steps, 1 - steps, np.array([0.0, 1.0])):  # all are numbers of float32
        found = parse_schedule(text)(jnp.asarray(u, jnp.float32), *bounds)
        np.testing.assert_allclose(found, parse_schedule(text)(u, *bounds, xp=np), atol=4e-6)


def test_the_flows_time_is_logit_normal():
    u = np.linspace(0, 1, 33)[1:-1]
    logsnr = parse_schedule("logit_normal(mean=-0.4, std=0.8)")(u, -60.0, 60.0, xp=np)
    t = 1 / (1 + np.exp(logsnr / 2))  # σ/(α+σ)
    np.testing.assert_allclose(np.log(t / (1 - t)), -0.4 + 0.8 * stats.norm.ppf(u), atol=1e-9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("norml", "unknown schedule 'norml', did you mean 'normal'"),
        ("normal(std=-1)", "normal: std is -1; need a finite number above 0"),
        ("normal(mean=inf)", "normal: mean is inf; need a finite number"),
        ("logit_normal(s=1)", "logit_normal takes no 's'"),
        ("cosine(s=0.008)", "cosine takes no arguments"),
        ("normal(mean=60, std=2)", "has only 0 of its mass between logsnr_min -20 and logsnr_max 20"),
    ],
)
def test_an_invalid_schedule_is_named_on_one_line(text, said):
    with pytest.raises(UsageError, match=rf"\A[^\n]*{said}[^\n]*\Z"):
        logsnr_grid(8, text)


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_grid_is_float64_and_rises_between_its_bounds(schedule, bounds):
    grid = logsnr_grid(257, schedule, *bounds)
    assert (grid.dtype, grid.shape) == (np.float64, (257,))
    assert np.all(np.diff(grid) > 0)
    np.testing.assert_allclose(grid[[0, -1]], bounds, rtol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_doubling_the_grid_keeps_its_levels(schedule):
    np.testing.assert_allclose(logsnr_grid(17, schedule)[::2], logsnr_grid(9, schedule), atol=1e-9)


def test_the_default_grid_has_the_middle_of_the_paper():
    np.testing.assert_allclose(logsnr_grid(5)[1:-1], [-1.762619, 0, 1.762619], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1,), "num_steps is 1"),
        ((8, "linear"), "unknown schedule 'linear'; known: cosine, uniform"),
        ((8, "cosine", 5.0, -5.0), "logsnr_min 5.0 is not below logsnr_max -5.0"),
        ((8, "cosine", 5.0, 5.0), "not below"),
    ],
)
def test_an_invalid_grid_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        logsnr_grid(*arguments)


def test_network_time_runs_from_clean_0_to_noise_1000():
    np.testing.assert_allclose(network_time(jnp.array([jnp.inf, 0.0, -jnp.inf])), [0, 500, 1000], rtol=1e-6)
    time = network_time(jnp.linspace(-20, 20, 1001))
    assert time.dtype == jnp.float32
    assert 0 < time[-1] < 0.1
    assert 999.9 < time[0] < 1000
    assert jnp.all(jnp.diff(time) < 0)


def test_the_cosine_schedule_spreads_network_time_evenly():
    u = jnp.linspace(0, 1, 33)
    time = network_time(cosine(u))
    np.testing.assert_allclose(time, time[0] + u * (time[-1] - time[0]), atol=1e-3)
    assert math.isclose(time[0] + time[-1], 1000, rel_tol=1e-6)
