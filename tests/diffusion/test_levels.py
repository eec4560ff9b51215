"""Laws of the noise levels of a process, in continuous λ and in discrete time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.diffusion.discrete import kept_timesteps
from cfgjax.diffusion.levels import Continuous, Discrete
from cfgjax.diffusion.schedules import logsnr_grid, network_time

CONTINUOUS = [
    Continuous("uniform", -6.0, 9.0, bound_steps=40),
    Continuous("normal(mean=0.8, std=2)", -6.0, 9.0, bound_steps=40),
    Continuous(),
]
DISCRETE = [Discrete("linear"), Discrete("cosine", 4000)]
continuous = pytest.mark.parametrize("levels", CONTINUOUS, ids=str)
discrete = pytest.mark.parametrize("levels", DISCRETE, ids=str)
both = pytest.mark.parametrize("levels", CONTINUOUS + DISCRETE, ids=str)
U = jnp.asarray((np.arange(4000) + 0.5) / 4000, jnp.float32)


@both
def test_levels_are_float32_between_their_bounds(levels):
    logsnr = levels.logsnr(U)
    assert logsnr.dtype == jnp.float32
    assert np.all(np.diff(logsnr) <= 0)
    low, high = np.float32(levels.logsnr_min), np.float32(levels.logsnr_max)
    assert logsnr.min() >= low - 1e-5 and logsnr.max() <= high + 1e-5


@both
def test_one_in_bound_steps_levels_is_the_cleanest(levels):
    _, last = levels.neighbour(U)
    assert last.sum() == len(U) / levels.bound_steps
    np.testing.assert_array_equal(np.diff(last.astype(int)) <= 0, True)  # they are the cleanest


@both
def test_the_neighbour_is_the_next_cleaner_level_or_at_the_clean_end_the_next_noisier(levels):
    u = jnp.asarray((np.arange(levels.bound_steps) + 0.5) / levels.bound_steps, jnp.float32)
    logsnr, (neighbour, last) = levels.logsnr(u), levels.neighbour(u)
    np.testing.assert_array_equal(last, np.arange(levels.bound_steps) == 0)
    assert np.all((neighbour > logsnr) == ~last)
    np.testing.assert_allclose(neighbour[1:], logsnr[:-1], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(neighbour[0], logsnr[1], rtol=2e-5)


@continuous
@pytest.mark.parametrize("u", [0.0, 1 / 3, 1 - 2**-24])
def test_no_neighbouring_level_is_out_of_bounds(levels, u):
    neighbour, last = levels.neighbour(jnp.float32(u))
    assert levels.logsnr_min < neighbour <= levels.logsnr_max
    assert last == (u == 0)


@continuous
def test_the_grid_and_time_of_continuous_levels_equal_those_of_the_schedule(levels):
    bounds = levels.schedule, levels.logsnr_min, levels.logsnr_max
    np.testing.assert_array_equal(levels.grid(17), logsnr_grid(17, *bounds))
    np.testing.assert_array_equal(levels.grid(np.int64(2)), logsnr_grid(2, *bounds))
    np.testing.assert_array_equal(levels.time(levels.logsnr(U)), network_time(levels.logsnr(U)))


@discrete
def test_all_u_of_a_timestep_give_its_level(levels):
    steps = np.arange(levels.num_timesteps)
    for within in (0.01, 0.5, 0.99):
        u = jnp.asarray((steps + within) / levels.num_timesteps, jnp.float32)
        np.testing.assert_array_equal(levels.timestep(u), steps)
        np.testing.assert_array_equal(levels.logsnr(u), levels.table.astype(np.float32))


@discrete
def test_the_network_receives_the_exact_original_timestep(levels):
    steps = np.arange(levels.num_timesteps)
    for time in (levels.time, jax.jit(levels.time)):
        found = time(jnp.asarray(levels.table, jnp.float32))
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, steps)


@discrete
@pytest.mark.parametrize("spacing", [10, "ddim25", "4+3"])
def test_respaced_grids_have_the_retained_levels_and_timesteps(levels, spacing):
    kept, grid = kept_timesteps(levels.num_timesteps, spacing), levels.grid(spacing)
    assert grid.dtype == np.float64 and np.all(np.diff(grid) > 0)
    np.testing.assert_array_equal(grid[::-1], levels.table[kept])
    np.testing.assert_array_equal(levels.time(jnp.asarray(grid, jnp.float32)), kept[::-1])


@discrete
def test_between_timesteps_the_network_time_is_interpolated(levels):
    middle = jnp.asarray((levels.table[1:] + levels.table[:-1]) / 2, jnp.float32)
    np.testing.assert_allclose(levels.time(middle), np.arange(levels.num_timesteps - 1) + 0.5, atol=1e-3)
    beyond = levels.time(jnp.array([levels.logsnr_max + 1, levels.logsnr_min - 1]))
    np.testing.assert_array_equal(beyond, [0, levels.num_timesteps - 1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Continuous("linear"), "unknown schedule 'linear'; known: cosine, uniform"),
        (lambda: Continuous(logsnr_min=3.0, logsnr_max=3.0), "logsnr_min 3.0 is not below logsnr_max 3.0"),
        (lambda: Continuous(bound_steps=1), "bound_steps is 1; need at least 2"),
        (lambda: Continuous().grid("ddim25"), "num_steps is 'ddim25'; a process in continuous λ takes a number"),
        (lambda: Discrete("sqrt"), "unknown betas 'sqrt'; known: linear, cosine"),
        (lambda: Discrete(num_timesteps=1), "num_timesteps is 1; need at least 2"),
        (lambda: Discrete(num_timesteps=10**10), "num_timesteps is 10000000000; need at most 1000000"),
        (lambda: Continuous().grid(10**10), "num_steps is 10000000000; need at most 1000000"),
        (lambda: Discrete().grid("1000000000"), "cannot take 1000000000 of 1000 timesteps"),
        (lambda: Discrete().grid("ddim1000000000"), "no integer stride takes 1000000000 of 1000 timesteps"),
        (lambda: Discrete("linear", 16), "num_timesteps is 16; linear betas reach 1.25; need more"),
        (lambda: Discrete("linear", 20), "linear betas reach 1; need more"),
        (lambda: Discrete().grid(2000), "num_steps is 2000: cannot take 2000 of 1000"),
    ],
)
def test_invalid_levels_are_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()
