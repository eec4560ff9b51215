"""Laws of the variational bound."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import log_ndtr

from cfgjax.diffusion import likelihood
from cfgjax.diffusion.likelihood import (
    bits_per_dim,
    decoder_bits,
    discretised_gaussian_log_prob,
    gaussian_kl,
    prior_bits,
    transition_bits,
)
from cfgjax.diffusion.mixture import GaussianMixture
from cfgjax.diffusion.prediction import PARAMETRISATIONS, Prediction, split_variance
from cfgjax.diffusion.process import alpha_sigma, broadcast_left, eps_from_x
from cfgjax.diffusion.schedules import logsnr_grid

pytestmark = pytest.mark.slow

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
LEVELS = np.linspace(-1, 1, 256)  # of 8-bit data
bound_of = jax.jit(bits_per_dim, static_argnames=("denoise", "clip"))
log_prob = jax.jit(discretised_gaussian_log_prob)
gradients = jax.jit(jax.vmap(jax.grad(discretised_gaussian_log_prob, (1, 2)), (0, None, None)))


def test_only_equal_gaussians_have_distance_zero():
    mean, log_var = jax.random.normal(jax.random.key(0), (2, 100)) * jnp.array([[1.0], [10.0]])
    np.testing.assert_array_equal(gaussian_kl(mean, log_var, mean, log_var), np.zeros(100))
    assert (gaussian_kl(mean, log_var, mean + 0.1, log_var) > 0).all()
    assert (gaussian_kl(mean, log_var, mean, log_var + 0.1) > 0).all()


def test_the_distance_of_gaussians_is_the_integral_of_the_log_ratio():
    z = np.linspace(-12, 12, 20_001)
    p, q = (stats.norm.logpdf(z, mean, std) for mean, std in ((0.3, 0.7), (-0.4, 1.5)))
    integral = np.sum(np.exp(p) * (p - q)) * (z[1] - z[0])
    np.testing.assert_allclose(gaussian_kl(0.3, 2 * np.log(0.7), -0.4, 2 * np.log(1.5)), integral, rtol=1e-6)


@pytest.mark.parametrize("log_var", [-20.0, -10.0, -5.0, 0.0])
@pytest.mark.parametrize("mean", [0.0, 0.123, -1.0, 1.7])
def test_the_masses_of_all_bins_sum_to_one(mean, log_var):
    mass = np.exp(log_prob(jnp.asarray(LEVELS, jnp.float32), mean, log_var))
    np.testing.assert_allclose(mass.sum(), 1, rtol=1e-4)


@pytest.mark.parametrize("log_var", [-20.0, -9.0, -3.0, 0.0])
def test_the_far_tails_and_their_gradients_are_accurate(log_var):
    mean = 0.25  # no bin's edge
    x = jnp.asarray(LEVELS[[1, 40, 128, 150, 159, 160, 170, 200, 254]], jnp.float32)
    edges = (np.asarray(x, np.float64) - mean + np.array([[-1], [1]]) / 255) * np.exp(-log_var / 2)
    below, above = np.where(edges[0] > 0, -edges[::-1], edges)
    exact = log_ndtr(above) + np.log(-np.expm1(log_ndtr(below) - log_ndtr(above)))
    assert log_var > -20 or exact.min() < -1e7
    np.testing.assert_allclose(log_prob(x, mean, log_var), exact, rtol=3e-4, atol=1e-6)
    assert np.isfinite(gradients(np.append(x, np.float32([-1, 1])), mean, log_var)).all()


@pytest.fixture(params=["cosine_1000", "linear_ddim25"])
def golden(request):
    """(λ of each discrete time, increasing with noise reversed, arrays in NHWC, T), in float64."""
    with np.load(GOLDENS / f"diffusion_{request.param}.npz") as file, jax.enable_x64(True):
        arrays = {name: np.moveaxis(file[name], 1, -1) if file[name].ndim == 4 else file[name] for name in file.files}
        alphas = arrays["alphas_cumprod"]
        yield np.log(alphas / (1 - alphas)), arrays, json.loads(str(arrays["config"]))["T"]


def term_bits(golden, clip):
    """The bound's terms of the golden's examples, each at its own t: the decoder at t = 0, else the step to t − 1."""
    logsnr, arrays, _ = golden
    t, out = arrays["t"], jnp.asarray(arrays["model_output"])
    x, z = jnp.asarray(arrays["x0"]), jnp.asarray(arrays["xt"])
    prediction = PARAMETRISATIONS["eps"](out, z, logsnr[t])
    rest = x, prediction.x, prediction.variance, logsnr[t]
    assert out.dtype == jnp.float64
    decoder = decoder_bits(*rest, np.where(t == 0, logsnr[1], -30.0), clip=clip)
    return t, np.where(t == 0, decoder, transition_bits(*rest, np.where(t == 0, 30.0, logsnr[t - 1]), clip=clip))


def published(golden, clip):
    _, arrays, _ = golden
    steps = len(arrays["betas"])
    return arrays["vb_bits_per_dim"] if clip else arrays["loss_vb"] * 1000 / steps  # scaled for L_hybrid


@pytest.mark.parametrize("clip", [True, False])
def test_transitions_equal_those_of_guided_diffusion(golden, clip):
    t, bits = term_bits(golden, clip)
    np.testing.assert_allclose(bits[t > 0], published(golden, clip)[t > 0], rtol=3e-6)


@pytest.mark.parametrize("clip", [True, False])
def test_the_decoder_equals_that_of_guided_diffusion_up_to_its_approximate_cdf(golden, clip, monkeypatch):
    t, exact = term_bits(golden, clip)
    np.testing.assert_allclose(exact[t == 0], published(golden, clip)[t == 0], atol=6e-4)
    log_sigmoid = jax.nn.log_sigmoid  # (1 + tanh u)/2 = sigmoid(2u)
    monkeypatch.setattr(likelihood, "log_ndtr", lambda u: log_sigmoid(2 * np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)))
    _, approximate = term_bits(golden, clip)
    np.testing.assert_allclose(approximate[t == 0], published(golden, clip)[t == 0], rtol=3e-7)


def test_the_prior_equals_that_of_guided_diffusion(golden):
    logsnr, arrays, _ = golden
    # the exponential of the log-variance is rounded to float32 there
    np.testing.assert_allclose(
        prior_bits(jnp.asarray(arrays["x0"]), logsnr[-1]), arrays["prior_bits_per_dim"], rtol=3e-4
    )


SHAPE = (4, 4, 2)
PIXELS = np.random.default_rng(0).integers(0, 256, (3, *SHAPE))
IMAGES = jnp.asarray(LEVELS[PIXELS], jnp.float32)
KEYS = jax.random.split(jax.random.key(1), 3)
GRID = logsnr_grid(16)


def poor(z, logsnr):
    """A prediction wrong everywhere."""
    return PARAMETRISATIONS["eps"](0.9 * z + 0.1 * jnp.tanh(broadcast_left(logsnr, z)), z, logsnr)


def knowing(image):
    """A denoiser that knows the image."""
    return lambda z, logsnr: Prediction(image, eps_from_x(z, image, logsnr))


def with_variance(fraction, slope):
    """`poor` with a learned variance: this fraction all over the image, but for a slope in λ."""

    def denoise(z, logsnr):
        variance = jnp.full_like(z, fraction) + slope / 2 * broadcast_left(logsnr, z)
        return poor(z, logsnr)._replace(variance=variance)

    return denoise


def test_a_model_that_knows_the_image_only_costs_the_prior():
    bound = bound_of(KEYS, knowing(IMAGES), IMAGES, GRID, v=0.0, clip=False)
    np.testing.assert_allclose(bound["terms"], 0, atol=1e-5)
    np.testing.assert_allclose(bound["total"], bound["prior"], atol=1e-4)
    np.testing.assert_allclose(bound["prior"], 0, atol=1e-8)
    np.testing.assert_array_less(0, prior_bits(IMAGES, -2.0))


@pytest.mark.parametrize("v", [0.0, 0.4])
def test_for_a_model_that_knows_the_image_every_term_is_the_cost_of_the_variance(v):
    grid, grey = np.array([-2.0, 4.0, 5.0]), jnp.full((3, *SHAPE), LEVELS[90], jnp.float32)
    variance, kept = 1 / (1 + np.exp(grid)), -np.expm1(grid[:-1] - grid[1:])
    wider = v * np.log(variance[:-1] / variance[1:])
    std = np.sqrt(variance[-1] * kept[-1] ** (1 - v))  # between (1−r) σ² of the last transition and σ²
    mass = 1 - 2 * stats.norm.sf(1 / 255 / std)
    expected = [*0.5 * (wider + np.expm1(-wider)), -np.log(mass)] / np.log(2)
    terms = bound_of(KEYS, knowing(grey), grey, grid, v=v)["terms"]
    np.testing.assert_allclose(terms, np.tile(expected, (3, 1)), rtol=1e-4, atol=1e-6)


def test_the_total_is_the_sum_of_one_term_per_level_and_the_prior():
    bound = bound_of(KEYS, poor, IMAGES, GRID, v=0.3)
    assert bound["terms"].shape == (3, 16)
    assert (bound["terms"] >= 0).all()
    np.testing.assert_allclose(bound["total"], bound["prior"] + bound["terms"].sum(axis=1), rtol=1e-6)


learned_bound = jax.jit(lambda *args: bits_per_dim(KEYS, with_variance(*args), IMAGES, GRID, v=0.5)["terms"])


@pytest.mark.parametrize("v", [0.0, 0.3, 1.0])
def test_a_constant_learned_variance_equals_the_fixed_one(v):
    fixed = bound_of(KEYS, poor, IMAGES, GRID, v=v)["terms"]
    np.testing.assert_allclose(learned_bound(v, 0.0), fixed, rtol=1e-4)
    assert not np.allclose(learned_bound(v, 0.1), fixed, rtol=1e-2)


def test_an_output_of_neither_eps_nor_eps_and_variance_is_refused():
    with pytest.raises(ValueError, match="has 6 channels; need 4, or 8"):
        split_variance(jnp.zeros((2, 4, 4, 6)), 4)


def test_the_bits_of_an_image_do_not_depend_on_the_batch():
    whole = bound_of(KEYS, poor, IMAGES, GRID, v=0.3)
    for i in range(3):
        alone = bound_of(KEYS[i : i + 1], poor, IMAGES[i : i + 1], GRID, v=0.3)
        jax.tree.map(lambda a, w, i=i: np.testing.assert_allclose(a[0], w[i], rtol=1e-5), alone, whole)


@pytest.mark.parametrize(("bits", "other"), [(transition_bits, 7.0), (decoder_bits, 5.0)])
def test_a_clipped_prediction_is_the_nearest_bound(bits, other):
    wild, black = jnp.full_like(IMAGES, -100.0), -jnp.ones_like(IMAGES)
    terms = lambda x_hat, clip: bits(IMAGES, x_hat, 0.3, 6.0, other, clip=clip)
    np.testing.assert_allclose(terms(wild, True), terms(black, False), rtol=1e-5)
    assert (terms(wild, False) > 2 * terms(wild, True)).all()


# Independent pixels of four values: the exact denoiser is a softmax, and the entropy is 1.75 bits.
VALUES, WEIGHTS = jnp.asarray(LEVELS[[20, 100, 150, 255]], jnp.float32), np.array([0.5, 0.25, 0.125, 0.125])


def exact_of_values(z, logsnr):
    alpha, sigma = (broadcast_left(a, z[..., None]) for a in alpha_sigma(logsnr))
    logits = jnp.log(WEIGHTS) - 0.5 * jnp.square((z[..., None] - alpha * VALUES) / sigma)
    x = jnp.sum(jax.nn.softmax(logits) * VALUES, axis=-1)
    return Prediction(x, eps_from_x(z, x, logsnr))


@pytest.mark.parametrize("v", [0.0, 0.3])
def test_the_bound_of_the_exact_denoiser_decreases_to_the_entropy(v):
    index = jax.random.choice(jax.random.key(0), 4, (64, 8, 8, 1), p=WEIGHTS)
    exact_bits = -np.log2(WEIGHTS)[index].mean(axis=(1, 2, 3))  # of each image; 1.75 in the mean over images
    keys = jax.random.split(jax.random.key(1), 64)
    excess, error = [], []
    for num_steps in (10, 100, 1000):
        grid = logsnr_grid(num_steps, "uniform", -14, 14)
        difference = np.asarray(bound_of(keys, exact_of_values, VALUES[index], grid, v=v)["total"]) - exact_bits
        excess.append(difference.mean())
        error.append(difference.std() / 8)
    assert all(a > b + 4 * e for a, b, e in zip(excess, excess[1:], error, strict=False)), (excess, error)
    assert -4 * error[-1] < excess[-1] < 0.03, (excess, error)


@pytest.mark.parametrize("num_steps", [10, 1000])
def test_the_bound_for_gaussian_data_decreases_to_the_mass_of_each_bin(num_steps):
    """σ at λmax = 5 is ten bins, so that the decoder is a density times the width of a bin, as the data is."""
    std = 0.25
    data = GaussianMixture(jnp.zeros((1, 1)), jnp.array([std]), jnp.ones(1))
    x = jnp.rint((std * jax.random.normal(jax.random.key(0), (64, 8, 8, 1)) + 1) * 127.5) / 127.5 - 1

    def denoise(z, logsnr):
        pixels = data.predict(z.reshape(-1, 1), jnp.repeat(logsnr, 64))
        return jax.tree.map(lambda a: a.reshape(z.shape), pixels)

    exact_bits = -discretised_gaussian_log_prob(x, 0.0, 2 * np.log(std)).mean(axis=(1, 2, 3)) / np.log(2)
    grid = logsnr_grid(num_steps, logsnr_min=-15, logsnr_max=5)
    keys = jax.random.split(jax.random.key(1), 64)
    excess = np.asarray(bound_of(keys, denoise, x, grid, v=1.0, clip=False)["total"] - exact_bits)
    error = excess.std() / 8
    assert excess.mean() > -4 * error, (excess.mean(), error)
    assert (abs(excess.mean()) < 0.03) == (num_steps == 1000), (excess.mean(), error)
