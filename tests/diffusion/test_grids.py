"""Laws of the grids of a sampler's levels."""

import dataclasses

import numpy as np
import pytest
from tiny import mixture_config, of_mixture, settings

from cfgjax.base.errors import UsageError
from cfgjax.data.sources.registry import mixture_of
from cfgjax.diffusion.grids import GRIDS, edm, flow, nearest_timesteps, schedule, uniform
from cfgjax.diffusion.guidance import RULES
from cfgjax.diffusion.levels import Continuous, Discrete
from cfgjax.diffusion.samplers import SAMPLERS
from cfgjax.diffusion.specs import parse, spec
from cfgjax.models.model import Model

CONTINUOUS, DISCRETE = Continuous(), Discrete()
every_grid = pytest.mark.parametrize("grid", [schedule(), edm(), uniform(), flow(shift=3)], ids=repr)


def noise_to_signal(logsnrs):
    return np.exp(-0.5 * logsnrs)


@pytest.mark.parametrize("levels", [CONTINUOUS, DISCRETE], ids=lambda levels: type(levels).__name__)
@every_grid
def test_a_grid_has_t_increasing_levels_within_those_of_training(grid, levels):
    for num_steps in (2, 5, 30):
        logsnrs = grid(levels, num_steps)
        assert logsnrs.shape == (num_steps,) and np.all(np.diff(logsnrs) > 0)
        assert levels.logsnr_min <= logsnrs[0] and logsnrs[-1] <= levels.logsnr_max


@every_grid
def test_a_grid_is_read_from_its_text(grid):
    assert parse(spec(grid), GRIDS, "grid") == grid


def test_the_default_grid_is_that_of_the_process():
    for levels in (CONTINUOUS, DISCRETE):
        np.testing.assert_array_equal(schedule()(levels, 17), levels.grid(17))
    np.testing.assert_array_equal(schedule()(DISCRETE, "ddim25"), DISCRETE.grid("ddim25"))


def test_edms_grid_has_equal_distances_in_the_root_of_the_noise_level():
    sigma = noise_to_signal(edm()(CONTINUOUS, 18))
    np.testing.assert_allclose(sigma[[0, -1]], [80, 0.002], rtol=1e-10)
    np.testing.assert_allclose(np.diff(sigma ** (1 / 7), n=2), 0, atol=1e-12)
    np.testing.assert_allclose(sigma[[1, 8]], [57.586, 3.257], rtol=2e-4)  # EDM's 18 levels
    np.testing.assert_allclose(np.diff(noise_to_signal(edm(rho=1)(CONTINUOUS, 9)), n=2), 0, atol=1e-9)


def test_the_grid_uniform_has_equal_distances_in_lambda():
    np.testing.assert_allclose(uniform()(CONTINUOUS, 5), [-20, -10, 0, 10, 20])
    np.testing.assert_allclose(uniform(logsnr_min=-4, logsnr_max=6)(CONTINUOUS, 3), [-4, 1, 6])


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.3])
def test_the_shifted_flow_times_are_those_of_equally_spaced_ones(shift):
    sigma = noise_to_signal(flow(shift=shift)(CONTINUOUS, 12))
    shifted = sigma / (1 + sigma)
    time = shifted / (shift + (1 - shift) * shifted)  # the inverse of k t / (1 + (k−1) t)
    np.testing.assert_allclose(np.diff(time, n=2), 0, atol=1e-9)
    np.testing.assert_allclose(sigma[[0, -1]], noise_to_signal(np.array([-20.0, 20.0])), rtol=1e-6)


@pytest.mark.parametrize("grid", [edm(), uniform(), flow(shift=3)], ids=repr)
def test_in_discrete_time_levels_are_rounded_to_the_nearest_timestep(grid):
    exact, rounded = (dataclasses.replace(grid, rounded=r)(DISCRETE, 20) for r in (False, True))
    assert set(rounded) <= set(DISCRETE.table) and not set(exact[1:-1]) <= set(DISCRETE.table)
    times = DISCRETE.time(rounded)
    np.testing.assert_allclose(times, np.rint(times), atol=1e-3)
    assert np.abs(times - np.asarray(DISCRETE.time(exact))).max() <= 0.5 + 1e-3
    np.testing.assert_array_equal(grid(CONTINUOUS, 20), dataclasses.replace(grid, rounded=False)(CONTINUOUS, 20))


@pytest.mark.parametrize("grid", [edm(), uniform(), flow(shift=3)], ids=repr)
def test_levels_rounded_to_equal_timesteps_are_an_error_with_the_largest_number_of_steps(grid):
    with pytest.raises(ValueError, match=r"num_steps is 900; the grid .* has at most (\d+) levels") as error:
        grid(DISCRETE, 900)
    most = int(str(error.value).split("at most ")[1].split()[0])
    assert len(grid(DISCRETE, most)) == most
    exact = dataclasses.replace(grid, rounded=False)
    for more in range(most + 1, most + 20):
        assert np.any(np.diff(nearest_timesteps(exact(DISCRETE, more), DISCRETE.table)) == 0)
    assert len(exact(DISCRETE, 900)) == 900


@pytest.mark.parametrize(
    ("grid", "levels", "message"),
    [
        ("edm(sigma_max=200)", DISCRETE, r"sigma_max is 200; the model was trained on ς from 0\.0100005 to 157\.407"),
        ("edm(sigma_min=0.001)", DISCRETE, "sigma_min is 0.001; the model was trained on ς from"),
        ("edm(sigma_min=3, sigma_max=2)", DISCRETE, "sigma_min 3 is not below sigma_max 2"),
        ("uniform(logsnr_max=21)", CONTINUOUS, "logsnr_max is 21; the model was trained on λ from -20 to 20"),
        ("uniform(logsnr_min=-21)", CONTINUOUS, "logsnr_min is -21; the model was trained on λ"),
        ("edm(rho=0)", CONTINUOUS, r"rho is 0; need a number in \[1, 1000\]"),
        ("flow(shift=0)", CONTINUOUS, "shift is 0; need a number in"),
        ("flow(rounded=1)", CONTINUOUS, "rounded is 1; need True or False"),
        ("flow(shfit=2)", CONTINUOUS, "flow takes no 'shfit', did you mean 'shift'"),
        ("edn()", CONTINUOUS, "unknown grid 'edn', did you mean 'edm'"),
    ],
)
def test_a_wrong_grid_is_a_one_line_error(grid, levels, message):
    with pytest.raises(ValueError, match=message) as error:
        parse(grid, GRIDS, "grid")(levels, 10)
    assert "\n" not in str(error.value)


def test_bounds_copied_from_the_message_are_accepted():
    logsnrs = edm(sigma_min=0.0100005, sigma_max=157.407)(DISCRETE, 10)
    np.testing.assert_allclose(logsnrs[[0, -1]], [DISCRETE.logsnr_min, DISCRETE.logsnr_max])


def test_a_selection_of_timesteps_is_for_the_grid_of_training_only():
    with pytest.raises(ValueError, match=r"num_steps is 'ddim25'; the grid edm\(\) takes a number of steps"):
        edm()(DISCRETE, "ddim25")


CONFIG = mixture_config()
MODEL = Model(CONFIG, {}, bind_params=of_mixture(mixture_of(settings(CONFIG).data)))


def test_another_grid_of_the_same_length_compiles_nothing():
    draw = lambda grid: MODEL.sample([0, 1], 0.5, sampler="dpmpp_2m()", num_steps=6, grid=grid)
    first = draw("schedule()")
    compiled = MODEL._sample._cache_size()
    others = [draw(grid) for grid in ("edm(rho=7)", "edm(rho=5)", "uniform()", flow(shift=2.0))]
    assert MODEL._sample._cache_size() == compiled
    assert all(np.abs(first - other).max() > 1e-3 for other in others)


def test_a_model_samples_on_the_grid_that_it_is_given():
    _, trajectory = MODEL.sample([0, 1], grid="uniform()", num_steps=5, return_trajectory=True)
    np.testing.assert_allclose(trajectory.logsnr, uniform()(MODEL.levels, 5), rtol=1e-6)
    np.testing.assert_allclose(MODEL.grid(5, "uniform()"), trajectory.logsnr)
    for wrong, message in (("edn()", "did you mean 'edm'"), (3, "grid is 3; need a grid"), ("edm(sigma_max=1e9)", "ς")):
        with pytest.raises(UsageError, match=message):
            MODEL.sample([0, 1], grid=wrong, num_steps=5)


def test_the_error_about_eulers_method_names_the_sampler_that_is_it():
    for text in ("euler", "euler()", "euler(eta=1)"):
        with pytest.raises(UsageError, match=r"unknown sampler 'euler': use ddim\(\).*flow\(\)"):
            parse(text, SAMPLERS, "sampler")
    with pytest.raises(UsageError, match="unknown rule 'euler'; known"):
        parse("euler()", RULES, "rule")
