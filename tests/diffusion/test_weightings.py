"""Laws of the weightings: each is the unweighted loss in another target, for every parametrisation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.losses import eps_loss
from cfgjax.diffusion.prediction import PARAMETRISATIONS, parse_parametrisation
from cfgjax.diffusion.weightings import WEIGHTINGS, parse_weighting

TARGETS = ["eps", "x", "v", "flow", "edm(data_std=0.5)"]  # each names a parametrisation and the loss in its target
assert {name.partition("(")[0] for name in TARGETS} == PARAMETRISATIONS.keys()
ENDS = [-20.0, -8.0, 0.0, 8.0, 20.0]
N, FEATURES, DIM = 32, 5, 3


def coefficients(name, logsnr):
    """(a, b) of the target a x + b ε at λ, as the papers write it, in float64."""
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))
    name, _, std = name.removesuffix(")").partition("(data_std=")
    if name == "edm":
        noise, std = sigma / alpha, float(std or 1)
        skip, out = std**2 / (noise**2 + std**2), noise * std / np.sqrt(noise**2 + std**2)
        return noise**2 / (noise**2 + std**2) / out, -skip * noise / out  # of (x − c_skip (x + ς ε))/c_out
    return {"eps": (0 * alpha, 1 + 0 * alpha), "x": (1, 0), "v": (-sigma, alpha), "flow": (-1, 1)}[name]


@pytest.fixture(scope="module")
def problem():
    """(x, ε, λ, features, weights) of a network that is linear in its last layer, in float64."""
    rng = np.random.default_rng(0)
    x, eps = rng.normal(size=(2, N, DIM))
    return x, eps, rng.uniform(-8, 8, N), rng.normal(size=(N, FEATURES)), rng.normal(size=(FEATURES, DIM))


def losses_of(prediction):
    """The function (x, ε, output, λ) → {weighting: loss [B]} of a network with this output, of every weighting."""

    def losses(x, eps, output, logsnr):
        predict = lambda z, logsnr, cond: parse_parametrisation(prediction)(output, z, logsnr)
        return {name: eps_loss(predict, x, None, eps, logsnr, parse_weighting(name)) for name in TARGETS}

    return losses


@pytest.mark.parametrize("prediction", TARGETS)
def test_with_every_weighting_the_gradient_is_that_of_an_unweighted_loss(prediction, problem):
    x, eps, logsnr, features, weights = problem
    level = logsnr[:, None]
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-level))), np.sqrt(1 / (1 + np.exp(level)))
    z, output, (a, b) = alpha * x + sigma * eps, features @ weights, coefficients(prediction, level)
    determinant = alpha * b - sigma * a  # of α x̂ + σ ε̂ = z, a x̂ + b ε̂ = output
    found_x, found_eps = (b * z - sigma * output) / determinant, (alpha * output - a * z) / determinant

    def mean_losses(weights, x, eps, logsnr, features):
        return jax.tree.map(jnp.mean, losses_of(prediction)(x, eps, features @ weights, logsnr))

    with jax.enable_x64(True):
        given = [jnp.asarray(array) for array in (weights, x, eps, logsnr, features)]
        values, gradients = jax.jit(lambda *given: (mean_losses(*given), jax.jacrev(mean_losses)(*given)))(*given)
    for name in TARGETS:
        c, d = coefficients(name, level)
        error = c * (found_x - x) + d * (found_eps - eps)
        slope = (d * alpha - c * sigma) / determinant  # of the target in the network's output
        np.testing.assert_allclose(values[name], np.mean(error**2), rtol=1e-9)
        expected = 2 * features.T @ (error * slope) / error.size
        np.testing.assert_allclose(gradients[name], expected, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("prediction", TARGETS)
def test_losses_and_gradients_have_their_digits_at_both_ends_in_float32(prediction):
    rng, losses = np.random.default_rng(1), losses_of(prediction)
    x, eps, output = rng.normal(size=(3, len(ENDS), DIM)).astype(np.float32)
    given = x, eps, output, np.array(ENDS, np.float32)
    total = lambda output, x, eps, logsnr: jax.tree.map(jnp.sum, losses(x, eps, output, logsnr))
    both = jax.jit(lambda x, eps, out, logsnr: (losses(x, eps, out, logsnr), jax.jacrev(total)(out, x, eps, logsnr)))
    found = both(*map(jnp.asarray, given))
    with jax.enable_x64(True):
        exact = both(*(jnp.asarray(array, jnp.float64) for array in given))
    for name, part in itertools.product(TARGETS, range(2)):
        ours, theirs = (np.asarray(tree[part][name]).reshape(len(ENDS), -1) for tree in (found, exact))
        assert ours.dtype == np.float32 and np.isfinite(ours).all()
        scale = np.abs(theirs).max(axis=1, keepdims=True)
        scale = np.maximum(scale, 1) if name == "eps" else scale  # ε − ε̂ of other networks is 0 at the noisy end
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-5)


@pytest.mark.parametrize("name", ["x", "v", "flow", "edm(data_std=0.5)"])
def test_the_factor_on_v_is_that_on_eps_times_alpha_squared_and_bounded(name):
    logsnr, weighting = jnp.linspace(-200.0, 200.0, 4001), parse_weighting(name)
    assert jnp.all(jnp.isfinite(weighting.on_v(logsnr))) and weighting.on_v(logsnr).max() <= 4 + 1e-6
    usual = jnp.linspace(-20.0, 20.0, 401)
    np.testing.assert_allclose(weighting(usual) * jax.nn.sigmoid(usual), weighting.on_v(usual), rtol=1e-5)


def test_the_factors_on_eps_are_those_of_the_papers():
    logsnr = np.linspace(-20, 20, 81)
    noise = np.exp(-logsnr / 2)  # σ/α
    expected = {
        "eps": np.ones(81),
        "x": noise**2,
        "v": 1 + noise**2,
        "flow": (1 + noise) ** 2,
        "edm": (noise**2 + 1) / noise**2 * noise**2,
        "edm(data_std=0.5)": (noise**2 + 0.25) / (noise * 0.5) ** 2 * noise**2,  # EDM table 1, times ς² of D to ε
        "min_snr": np.minimum(1, 5 * noise**2),
        "min_snr(gamma=0.1)": np.minimum(noise**-2, 0.1) * noise**2,
        "sigmoid(b=-1)": 1 / (1 + np.exp(1 + logsnr)),
    }
    assert {text.partition("(")[0] for text in expected} == WEIGHTINGS.keys()
    for text, factor in expected.items():
        found = parse_weighting(text)(jnp.asarray(logsnr, jnp.float32))
        np.testing.assert_allclose(found, factor, rtol=1e-5, err_msg=text)


def test_every_weighting_is_finite_at_any_level():
    extreme = jnp.array([-1e4, -100.0, 100.0, 1e4])
    for text in WEIGHTINGS:
        weighting = parse_weighting(text)
        assert np.isfinite(getattr(weighting, "on_v", weighting)(extreme)).all(), text


def test_min_snr_of_a_large_gamma_is_the_unweighted_loss():
    logsnr = jnp.linspace(-20.0, 20.0, 11)
    np.testing.assert_array_equal(parse_weighting("min_snr(gamma=1e9)")(logsnr), 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("min_snrr", "unknown weighting 'min_snrr', did you mean 'min_snr'"),
        ("min_snr(g=5)", "min_snr takes no 'g'"),
        ("min_snr(5)", "'5' is given without a name; its arguments are gamma=…"),
        ("min_snr(gamma=0)", "min_snr: gamma is 0; need a finite number above 0"),
        ("sigmoid(b=None)", "sigmoid: b is None; need a finite number"),
        ("x(3)", "x takes no arguments"),
    ],
)
def test_an_invalid_weighting_is_named_on_one_line(text, said):
    with pytest.raises(UsageError, match=rf"\A[^\n]*{said}[^\n]*\Z"):
        parse_weighting(text)
