"""Diagnostics of guidance on Gaussians, whose predictions, and whose solution of the guided ODE, have closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.diffusion.guidance import bind_rule, cfg, conditional
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import alpha_sigma, broadcast_left
from cfgjax.diffusion.samplers import ddim, initial_noise, sample
from cfgjax.diffusion.samplers.diagnostics import NoBranches, guidance_diagnostics, tilting_integral

STD, NULL_STD, W = 0.5, 1.0, 1.5
LOGSNRS = np.linspace(-14, 14, 400)
NUM = 4


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64():
        yield


def predict(z, logsnr, std):
    """ε = σ z/(α² s² + σ²) of N(0, s² I), with s as the condition."""
    alpha, sigma = (broadcast_left(a, z) for a in alpha_sigma(logsnr))
    variance = alpha**2 * broadcast_left(std, z) ** 2 + sigma**2
    return Prediction(alpha * broadcast_left(std, z) ** 2 * z / variance, sigma * z / variance)


def ran(rule, w=W, dim=3, logsnrs=LOGSNRS, clip=False):
    """(z, diagnostics) of every level."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(NUM))
    z = initial_noise(keys, (dim,), jnp.float64)
    denoise = bind_rule(rule, predict, jnp.full(NUM, STD), jnp.full(NUM, NULL_STD), w)
    save = lambda evaluation: (evaluation.z, guidance_diagnostics(evaluation))
    return sample(ddim(), denoise, keys, z, logsnrs, clip=clip, save=save)[1]


@pytest.mark.slow
def test_the_difference_and_the_angle_of_two_gaussians():
    z, found = ran(cfg())
    alpha, sigma = alpha_sigma(LOGSNRS)
    factor = sigma / (alpha**2 * STD**2 + sigma**2) - sigma / (alpha**2 * NULL_STD**2 + sigma**2)
    root_mean_square = np.sqrt(np.square(z).mean(axis=2))
    np.testing.assert_allclose(found.difference, np.abs(factor)[:, None] * root_mean_square, rtol=1e-9)
    np.testing.assert_allclose(found.cosine, 1, rtol=1e-12)  # both are multiples of z


def test_the_tilting_integral_is_that_of_the_solution_of_the_guided_ode():
    """y(ς) ∝ (s² + ς²)^{(1+w)/2} (S² + ς²)^{−w/2} gives ½ ∫ w(1+w) ‖ε_c − ε_u‖² dλ by quadrature."""
    z, found = ran(cfg(), logsnrs=np.linspace(-14, 14, 3000))
    fine = np.linspace(-14, 14, 20_001)
    noise = np.exp(-fine / 2)
    path = (STD**2 + noise**2) ** ((1 + W) / 2) * (NULL_STD**2 + noise**2) ** (-W / 2)
    difference = noise / (STD**2 + noise**2) - noise / (NULL_STD**2 + noise**2)  # ε = ς y/(s² + ς²)
    integrand = 0.5 * W * (1 + W) * np.square(difference * path / path[0])
    exact = np.sum(0.5 * (integrand[1:] + integrand[:-1]) * np.diff(fine))
    start = np.sum(np.square(z[0] / alpha_sigma(-14.0)[0]), axis=1)  # ‖y(ς_1)‖²
    total = tilting_integral(np.moveaxis(np.asarray(found.tilting), 0, 1), np.linspace(-14, 14, 3000))[:, -1]
    np.testing.assert_allclose(total, exact * start, rtol=5e-3)


@pytest.mark.parametrize("w", [0.0, -1.0])
def test_unguided_samples_are_not_tilted(w):
    assert not np.asarray(ran(cfg(), w)[1].tilting).any()


def test_the_share_outside_is_that_of_predictions_before_clipping():
    _, clipped = ran(cfg(), w=-3.0, logsnrs=np.linspace(-1, 6, 20), clip=True)
    assert np.asarray(clipped.outside)[0].max() > 0
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(NUM))
    z = initial_noise(keys, (3,), jnp.float64)
    denoise = bind_rule(cfg(), predict, jnp.full(NUM, STD), jnp.full(NUM, NULL_STD), -3.0)
    x = denoise(z, jnp.full(NUM, -1.0), ())[0].x
    np.testing.assert_allclose(np.asarray(clipped.outside)[0], np.mean(abs(np.asarray(x)) > 1, axis=1))


def test_a_weight_for_each_sample_tilts_each_sample():
    w = jnp.arange(NUM) * 1.0
    _, found = ran(cfg(), w)
    dim = 3
    expected = 0.5 * w * (1 + w) * dim * np.square(found.difference)
    np.testing.assert_allclose(found.tilting, expected, rtol=1e-9)


def test_a_rule_without_branches_is_one_line():
    with pytest.raises(NoBranches, match="the rule combines no two predictions"):
        ran(conditional())


def test_the_integral_of_a_constant_is_its_area():
    found = tilting_integral(np.full((2, 5), 3.0), np.array([-2.0, -1.0, 0.0, 2.0, 4.0]))
    np.testing.assert_allclose(found, [[0, 3, 6, 12, 18]] * 2)
