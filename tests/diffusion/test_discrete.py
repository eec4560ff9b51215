"""Laws of discrete-time processes: β tables and the timesteps that respacing keeps."""

import numpy as np
import pytest

from cfgjax.diffusion.discrete import BETAS, kept_timesteps, logsnr_table, respaced

tables = pytest.mark.parametrize("name", BETAS)


@tables
def test_alpha_bar_can_be_recovered_from_logsnr(name):
    betas = BETAS[name](1000)
    alpha_bar, beta_bar = 1 / (1 + np.exp(-logsnr_table(betas))), 1 / (1 + np.exp(logsnr_table(betas)))
    np.testing.assert_allclose(alpha_bar, np.cumprod(1 - betas), rtol=1e-12)
    np.testing.assert_allclose(alpha_bar[1:] / alpha_bar[:-1], 1 - betas[1:], rtol=1e-12)
    np.testing.assert_allclose(beta_bar[0], betas[0], rtol=1e-12)  # all digits, where 1 − ᾱ has lost some


def test_logsnr_is_accurate_where_alpha_bar_rounds_to_one():
    np.testing.assert_allclose(logsnr_table(np.array([1e-18, 1e-18])), -np.log([1e-18, 2e-18]), rtol=1e-12)


@tables
@pytest.mark.parametrize("num_timesteps", [50, 1000, 4000])
def test_betas_are_probabilities_and_end_in_noise(name, num_timesteps):
    betas = BETAS[name](num_timesteps)
    assert (betas.shape, betas.dtype) == ((num_timesteps,), np.float64)
    assert np.all((betas > 0) & (betas < 1)) and np.all(np.diff(betas) >= 0)
    assert np.all(np.diff(logsnr_table(betas)) < 0)
    assert logsnr_table(betas)[-1] < -8  # as good as noise, however many timesteps


def test_the_beta_tables_take_the_values_of_the_papers():
    linear, cosine = BETAS["linear"](1000), BETAS["cosine"](1000)
    np.testing.assert_allclose(linear[[0, -1]], [1e-4, 0.02], rtol=1e-12)
    np.testing.assert_allclose(BETAS["linear"](4000), np.linspace(1e-4, 0.02, 4000) / 4, rtol=1e-12)
    np.testing.assert_allclose(cosine[-1], 0.999)
    alpha_bar = np.cumprod(1 - cosine)
    np.testing.assert_allclose(alpha_bar[499], np.cos(0.508 / 1.008 * np.pi / 2) ** 2 / np.cos(np.pi / 252) ** 2)


@tables
def test_retaining_every_timestep_gives_the_same_process(name):
    betas = BETAS[name](1000)
    np.testing.assert_allclose(respaced(betas, kept_timesteps(1000, 1000)), betas, rtol=1e-10)


@tables
@pytest.mark.parametrize("spacing", [25, "ddim50", "10+15+20"])
def test_a_respaced_process_has_the_retained_levels(name, spacing):
    betas, kept = BETAS[name](1000), kept_timesteps(1000, spacing)
    np.testing.assert_allclose(logsnr_table(respaced(betas, kept)), logsnr_table(betas)[kept], rtol=1e-9)


@pytest.mark.parametrize("count", [2, 3, 25, 50, 250, 999, 1000])
def test_a_number_of_timesteps_is_spaced_evenly_with_both_ends(count):
    kept = kept_timesteps(1000, count)
    assert (len(kept), kept[0], kept[-1]) == (count, 0, 999)
    gaps = np.diff(kept)
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1
    np.testing.assert_array_equal(kept, kept_timesteps(1000, str(count)))


@pytest.mark.parametrize(("count", "stride"), [(25, 40), (50, 20), (1000, 1), (143, 7), (2, 500)])
def test_ddim_spacing_has_one_stride_from_zero(count, stride):
    np.testing.assert_array_equal(kept_timesteps(1000, f"ddim{count}"), np.arange(0, 1000, stride))
    assert count == len(np.arange(0, 1000, stride))


def test_each_section_is_respaced_separately():
    kept = kept_timesteps(300, "10+15+20")
    np.testing.assert_array_equal(kept, kept_timesteps(300, "10,15,20"))
    np.testing.assert_array_equal(np.bincount(kept // 100), [10, 15, 20])
    for section, count in enumerate((10, 15, 20)):
        own = kept[kept // 100 == section]
        np.testing.assert_array_equal(own, 100 * section + kept_timesteps(100, count))


def test_remaining_timesteps_go_to_the_first_sections():
    np.testing.assert_array_equal(kept_timesteps(11, "4+4+3"), np.arange(11))
    np.testing.assert_array_equal(kept_timesteps(11, "1+2+3"), [0, 4, 7, 8, 9, 10])


@pytest.mark.parametrize(
    ("spacing", "message"),
    [
        (1001, "cannot take 1001 of 1000 timesteps"),
        (0, "cannot take 0 of 1000"),
        ("10+600", "10\\+600: cannot take 600 of 500"),
        ("10+0", "cannot take 0 of 500"),
        ("ddim600", "no integer stride takes 600 of 1000"),
        ("ddim", "need a number, 'ddimK'"),
        ("fast", "'fast': need a number"),
        ("10++20", "need a number"),
        ("2.5", "need a number"),
        (-5, "need a number"),
    ],
)
def test_an_invalid_spacing_is_an_error(spacing, message):
    with pytest.raises(ValueError, match=message):
        kept_timesteps(1000, spacing)
