"""Laws of the Gaussian mixture and its exact denoiser."""

import jax
import jax.numpy as jnp
import jax.scipy.stats as stats
import numpy as np
import pytest

from cfgjax.diffusion.mixture import GaussianMixture
from cfgjax.diffusion.process import alpha_sigma, diffuse

MIXTURE = GaussianMixture(np.array([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]]), np.array([0.4, 0.8, 0.2]), [0.5, 0.3, 0.2])
predict, log_prob, log_posterior = map(jax.jit, (MIXTURE.predict, MIXTURE.log_prob, MIXTURE.log_posterior))
eps = lambda *arguments: predict(*arguments).eps
NULL = MIXTURE.num_components
POINTS = jax.random.normal(jax.random.key(0), (12, 2))
LEVELS = jnp.linspace(-6.0, 6.0, 12)


@pytest.mark.parametrize("label", [None, NULL, 1, jnp.arange(12) % (NULL + 1)])
def test_eps_is_the_score_times_minus_sigma(label):
    score = jax.jit(jax.grad(lambda z: log_prob(z, LEVELS, label).sum()))(POINTS)
    _, sigma = alpha_sigma(LEVELS)
    np.testing.assert_allclose(eps(POINTS, LEVELS, label), -sigma[:, None] * score, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("label", [None, 1, jnp.arange(12) % (NULL + 1)])
def test_the_pair_adds_up_to_z(label):
    x, noise, variance = predict(POINTS, LEVELS, label)
    np.testing.assert_allclose(diffuse(x, noise, LEVELS), POINTS, rtol=1e-5, atol=1e-5)
    assert variance is None


def test_the_pair_is_accurate_at_both_ends_of_the_levels():
    with jax.enable_x64(True):
        exact = GaussianMixture(MIXTURE.means, MIXTURE.stds, MIXTURE.weights).predict(POINTS.astype(float), 20.0)
        noisy = GaussianMixture(MIXTURE.means, MIXTURE.stds, MIXTURE.weights).predict(POINTS.astype(float), -20.0)
    np.testing.assert_allclose(predict(POINTS, 20.0).x, exact.x, rtol=1e-5)
    np.testing.assert_allclose(predict(POINTS, -20.0).x, noisy.x, rtol=1e-4)
    np.testing.assert_allclose(predict(POINTS, -20.0).eps, noisy.eps, rtol=1e-5)


def test_the_null_label_is_no_condition():
    for method in (eps, log_prob):
        np.testing.assert_array_equal(method(POINTS, LEVELS, NULL), method(POINTS, LEVELS, None))


@pytest.mark.parametrize("k", range(NULL))
def test_conditioning_on_a_class_gives_the_gaussian_of_its_component(k):
    alpha, sigma = alpha_sigma(LEVELS[:, None])
    std = jnp.sqrt(alpha**2 * MIXTURE.stds[k] ** 2 + sigma**2)
    expected = stats.norm.logpdf(POINTS, alpha * MIXTURE.means[k], std).sum(axis=-1)
    np.testing.assert_allclose(log_prob(POINTS, LEVELS, k), expected, rtol=1e-5, atol=1e-5)


def test_the_posterior_agrees_with_bayes_rule():
    evidence = log_prob(POINTS, LEVELS)
    joint = [log_prob(POINTS, LEVELS, k) + jnp.log(MIXTURE.weights[k]) for k in range(NULL)]
    found = log_posterior(POINTS, LEVELS)
    np.testing.assert_allclose(found, jnp.stack(joint, axis=-1) - evidence[:, None], atol=1e-4)
    np.testing.assert_allclose(jnp.exp(found).sum(axis=-1), 1, rtol=1e-6)


@pytest.mark.parametrize("logsnr", [-2.0, 1.0, jnp.inf])
@pytest.mark.parametrize("label", [None, 0, 1])
def test_the_density_integrates_to_one(label, logsnr):
    mixture = GaussianMixture(np.array([[-1.0], [2.0]]), [0.3, 0.5], [0.25, 0.75])
    grid = np.linspace(-10, 10, 4001, dtype=np.float32)
    density = np.exp(jax.jit(mixture.log_prob)(grid[:, None], logsnr, label))
    np.testing.assert_allclose(np.trapezoid(density, grid), 1, rtol=1e-4)


def test_at_the_cleanest_level_the_density_is_that_of_the_data():
    np.testing.assert_allclose(log_prob(POINTS, 30.0), log_prob(POINTS), rtol=1e-4)


def test_samples_have_the_mixtures_moments():
    n = 40_000
    x, label = map(np.asarray, MIXTURE.sample(jax.random.key(0), n))
    assert (x.shape, label.dtype) == ((n, 2), np.int32)
    for k, weight in enumerate(MIXTURE.weights):
        members = x[label == k]
        error = 5 * MIXTURE.stds[k] / np.sqrt(len(members))
        assert abs(len(members) / n - weight) < 5 * np.sqrt(weight * (1 - weight) / n)
        np.testing.assert_allclose(members.mean(axis=0), MIXTURE.means[k], atol=error)
        np.testing.assert_allclose(members.std(axis=0), MIXTURE.stds[k], atol=error)


def test_a_mixture_of_images_equals_that_of_flattened_images():
    flat, image = np.arange(24.0).reshape(2, 12) / 24, (2, 2, 3)
    arguments = [0.3, 0.6], [0.5, 0.5]
    z = jax.random.normal(jax.random.key(0), (5, 12))
    as_image = GaussianMixture(flat.reshape(2, *image), *arguments)
    as_point = GaussianMixture(flat, *arguments)
    expected = jax.jit(as_point.predict)(z, 0.5)
    for found, wanted in zip(jax.jit(as_image.predict)(z.reshape(5, *image), 0.5)[:2], expected[:2], strict=True):
        np.testing.assert_allclose(found, wanted.reshape(5, *image), atol=1e-5)


@pytest.mark.parametrize(
    ("means", "stds", "weights", "message"),
    [
        (np.zeros((2, 1)), [1.0], [0.5, 0.5], r"stds \(1,\)"),
        (np.zeros((2, 1)), [1.0, 1.0], [1.0], r"weights \(1,\)"),
        (np.float64(0), [1.0], [1.0], r"means \(\)"),
        (np.zeros((2, 1)), [1.0, 0.0], [0.5, 0.5], "must be positive"),
        (np.zeros((2, 1)), [1.0, 1.0], [0.5, 0.4], "sum 1"),
        (np.zeros((2, 1)), [1.0, 1.0], [1.5, -0.5], "positive"),
    ],
)
def test_an_invalid_mixture_is_an_error(means, stds, weights, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(means, stds, weights)
