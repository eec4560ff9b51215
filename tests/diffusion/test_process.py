"""Laws of the variance-preserving process and its posterior."""

import jax
import jax.numpy as jnp
import jax.scipy.stats as stats
import numpy as np
import pytest

from cfgjax.diffusion.process import alpha_sigma, broadcast_left, diffuse, eps_from_x, posterior, x_from_eps

step = jax.jit(posterior)
LEVELS = [(-3.0, -1.0), (-20.0, 20.0), (0.5, 0.75), (8.0, 20.0)]


def transition(logsnr, logsnr_next):
    """(c_z, c_x, log_var_lower, log_var_upper) of the posterior mean c_z z + c_x x."""
    shape = jnp.shape(logsnr)
    c_z, lower, upper = step(jnp.ones(shape), jnp.zeros(shape), logsnr, logsnr_next)
    c_x, _, _ = step(jnp.zeros(shape), jnp.ones(shape), logsnr, logsnr_next)
    return c_z, c_x, lower, upper


def test_the_posterior_takes_the_values_of_the_paper():
    c_z, c_x, lower, upper = transition(-3.0, -1.0)
    np.testing.assert_allclose([c_z, c_x], [0.3222791550, 0.4484113385], rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(jnp.stack([lower, upper])), [0.6321205588, 0.8236572376], rtol=1e-6)
    interpolated = [jnp.exp((1 - v) * lower + v * upper) for v in (0.2, 0.3)]
    np.testing.assert_allclose(interpolated, [0.6664832452, 0.6843588636], rtol=1e-6)


@pytest.mark.parametrize("levels", [*LEVELS, tuple(map(jnp.array, zip(*LEVELS, strict=True)))])
def test_the_posterior_maps_one_marginal_to_the_next(levels):
    logsnr, logsnr_next = levels
    c_z, c_x, lower, upper = transition(logsnr, logsnr_next)
    (alpha, sigma), (alpha_next, sigma_next) = alpha_sigma(logsnr), alpha_sigma(logsnr_next)
    np.testing.assert_allclose(c_z**2 * sigma**2 + jnp.exp(lower), sigma_next**2, rtol=3e-6)
    np.testing.assert_allclose(c_z * alpha + c_x, alpha_next, rtol=3e-6)
    assert jnp.all(upper > lower)


def test_the_posterior_agrees_with_bayes_rule():
    z, z_next, x = jax.random.normal(jax.random.key(0), (3, 4, 5))
    logsnr, logsnr_next = jnp.array([-3.0, -1.0, 0.0, 2.0]), jnp.array([-1.0, -0.5, 3.0, 5.0])
    mean, lower, upper = step(z, x, logsnr, logsnr_next)
    alpha, sigma = alpha_sigma(logsnr[:, None])
    alpha_next, sigma_next = alpha_sigma(logsnr_next[:, None])
    forward = stats.norm.logpdf(z, alpha / alpha_next * z_next, jnp.exp(upper / 2))
    joint = stats.norm.logpdf(z_next, alpha_next * x, sigma_next) + forward
    evidence = stats.norm.logpdf(z, alpha * x, sigma)
    np.testing.assert_allclose(stats.norm.logpdf(z_next, mean, jnp.exp(lower / 2)), joint - evidence, atol=1e-3)


def test_variance_is_preserved_and_sigma_is_accurate():
    logsnr = np.linspace(-20, 20, 401)
    alpha, sigma = alpha_sigma(jnp.asarray(logsnr, jnp.float32))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-6)
    np.testing.assert_allclose(alpha, (1 + np.exp(-logsnr)) ** -0.5, rtol=2e-6)
    np.testing.assert_allclose(sigma, (1 + np.exp(logsnr)) ** -0.5, rtol=2e-6)
    np.testing.assert_allclose(2 * (jnp.log(alpha) - jnp.log(sigma)), logsnr, atol=1e-5)


@pytest.mark.parametrize("logsnr", [-3.0, 0.0, 3.0, jnp.array([-4.0, 0.0, 4.0])])
def test_eps_and_x_are_inverse_to_each_other(logsnr):
    x, eps = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    z = diffuse(x, eps, logsnr)
    np.testing.assert_allclose(x_from_eps(z, eps, logsnr), x, atol=1e-5)
    np.testing.assert_allclose(eps_from_x(z, x, logsnr), eps, atol=1e-5)


def test_diffused_data_has_the_marginals_moments():
    alpha, sigma = 0.8, 0.6
    eps = jax.random.normal(jax.random.key(0), (40_000, 1))
    z = diffuse(jnp.full(eps.shape, 2.0), eps, 2 * np.log(alpha / sigma))
    np.testing.assert_allclose([z.mean(), z.std()], [alpha * 2.0, sigma], atol=5 * sigma / 200)


def test_logsnr_broadcasts_along_the_batch_axis():
    x = jax.random.normal(jax.random.key(0), (3, 2, 4, 3))
    logsnr = jnp.array([-1.0, 0.0, 2.0])
    assert broadcast_left(logsnr, x).shape == (3, 1, 1, 1)
    batched = step(x, 2 * x, logsnr, logsnr + 1)
    for i in range(3):
        single = step(x[i], 2 * x[i], logsnr[i], logsnr[i] + 1)
        for ours, alone in zip(batched, single, strict=True):
            np.testing.assert_allclose(ours[i], jnp.broadcast_to(alone, ours[i].shape), rtol=1e-5, atol=1e-6)
