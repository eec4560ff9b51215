"""Laws of the pair (x̂, ε̂) and of the parametrisations that make it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.prediction import PARAMETRISATIONS, add_to_eps, parse_parametrisation, split_variance
from cfgjax.diffusion.process import diffuse
from cfgjax.diffusion.specs import shortest

X, EPS, OUTPUT = jax.random.normal(jax.random.key(0), (3, 9, 4, 2))
LOGSNR = jnp.linspace(-8.0, 8.0, 9)
every_parametrisation = pytest.mark.parametrize("name", [*PARAMETRISATIONS, "edm(data_std=0.5)"])


@every_parametrisation
def test_the_pair_adds_up_to_z_for_any_output(name):
    z = diffuse(X, EPS, LOGSNR)
    x, eps, variance = parse_parametrisation(name)(OUTPUT, z, LOGSNR)
    np.testing.assert_allclose(diffuse(x, eps, LOGSNR), z, rtol=1e-4, atol=1e-5)
    assert variance is None


def targets(name, logsnr):
    """(a, b) of the target a x + b ε of a parametrisation, in float64, as the papers write it."""
    alpha, sigma = (np.sqrt(1 / (1 + np.exp(sign * np.float64(logsnr)))) for sign in (-1, 1))
    name, _, std = name.removesuffix(")").partition("(data_std=")
    if name == "edm":
        noise, std = sigma / alpha, float(std or 1)
        skip, out = std**2 / (noise**2 + std**2), noise * std / np.sqrt(noise**2 + std**2)
        return noise**2 / (noise**2 + std**2) / out, -skip * noise / out  # of (x − c_skip (x + ς ε))/c_out
    return {"eps": (0, 1), "x": (1, 0), "v": (-sigma, alpha), "flow": (-1, 1)}[name]


@every_parametrisation
@pytest.mark.parametrize("logsnr", [-20.0, -3.0, 0.0, 3.0, 20.0])
def test_the_true_target_gives_data_and_noise(name, logsnr):
    x, eps = (np.asarray(a, np.float64) for a in (X, EPS))
    a, b = targets(name, logsnr)
    with jax.enable_x64(True):
        z, levels = diffuse(jnp.asarray(x), jnp.asarray(eps), logsnr), jnp.full(len(x), logsnr)
        found = parse_parametrisation(name)(jnp.asarray(a * x + b * eps), z, levels)
        np.testing.assert_allclose(found.x, x, atol=1e-9)
        np.testing.assert_allclose(found.eps, eps, atol=1e-9)


@every_parametrisation
@pytest.mark.parametrize("logsnr", [-20.0, 0.0, 20.0])
def test_float32_has_the_digits_of_float64_at_both_ends(name, logsnr):
    levels = jnp.full(len(X), logsnr)
    found = parse_parametrisation(name)(OUTPUT, X, levels)
    with jax.enable_x64(True):
        exact = parse_parametrisation(name)(*(jnp.asarray(np.asarray(a, np.float64)) for a in (OUTPUT, X, levels)))
        amplified = np.exp(np.array([-1, 1]) * logsnr / 2) * [name == "eps", name == "x"]  # of x̂ and of ε̂
    for ours, theirs, factor in zip(found[:2], exact[:2], amplified, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=6e-7 * (1 + factor), rtol=4e-7)


def test_at_unit_deviation_edm_predicts_minus_v_from_z():
    edm, v = parse_parametrisation("edm(data_std=1)"), parse_parametrisation("v")
    for ours, theirs in zip(edm(-OUTPUT, X, LOGSNR)[:2], v(OUTPUT, X, LOGSNR)[:2], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert edm.network_input(X, LOGSNR) is X


@pytest.mark.parametrize("logsnr", [-20.0, -1.0, 2.0, 20.0])
def test_the_input_and_the_target_of_edm_have_unit_variance(logsnr):
    x, eps = jax.random.normal(jax.random.key(1), (2, 1, 40_000)) * jnp.array([[[0.5]], [[1.0]]])
    edm = parse_parametrisation("edm(data_std=0.5)")
    given = edm.network_input(diffuse(x, eps, logsnr), jnp.full(1, logsnr))
    a, b = targets("edm(data_std=0.5)", logsnr)
    np.testing.assert_allclose([given.std(), (a * x + b * eps).std()], 1, atol=0.02)
    noise = np.exp(-logsnr / 2)  # c_in y, with y = x + ς ε
    np.testing.assert_allclose(given, (x + noise * eps) / np.sqrt(noise**2 + 0.25), rtol=1e-4, atol=1e-5)


def test_equal_parametrisations_have_equal_text():
    text = lambda given: shortest(given, PARAMETRISATIONS, "parametrisation")
    assert text("v()") == text("v") == "v"
    assert text("edm(data_std=1)") == text("edm()") == text("edm") == "edm"
    assert text("edm(data_std=5e-1)") == "edm(data_std=0.5)"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("vv", "unknown parametrisation 'vv', did you mean 'v'"),
        ("v(3)", "v takes no arguments; given 'v\\(3\\)'"),
        ("edm(std=0.5)", "edm takes no 'std'"),
        ("edm(data_std=0)", "edm: data_std is 0; need a finite number above 0"),
        ("edm(data_std=inf)", "edm: data_std is inf; need a finite number above 0"),
        ("edm(data_std=v)", "edm: data_std is .*; need a finite number above 0"),
        ("v +", "parametrisation 'v \\+' is no call such as"),
    ],
)
def test_an_invalid_parametrisation_is_named_on_one_line(text, said):
    with pytest.raises(UsageError, match=rf"\A[^\n]*{said}[^\n]*\Z"):
        parse_parametrisation(text)


def test_a_network_that_predicts_the_true_noise_recovers_the_data():
    found = PARAMETRISATIONS["eps"](EPS, diffuse(X, EPS, LOGSNR), LOGSNR)
    np.testing.assert_array_equal(found.eps, EPS)
    np.testing.assert_allclose(found.x, X, atol=1e-4)


@every_parametrisation
def test_the_second_half_of_the_channels_is_the_learned_variance(name):
    parametrisation = parse_parametrisation(name)
    found = parametrisation(jnp.concatenate([OUTPUT, 2 * X - 1], axis=-1), EPS, LOGSNR)
    np.testing.assert_allclose(found.variance, X, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, found[:2], parametrisation(OUTPUT, EPS, LOGSNR)[:2])


@every_parametrisation
def test_a_prediction_is_float32_whatever_the_network_computes_in(name):
    found = parse_parametrisation(name)(OUTPUT.astype(jnp.bfloat16), X, LOGSNR)
    assert (found.x.dtype, found.eps.dtype) == (jnp.float32, jnp.float32)


def test_a_wrong_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="has 6 channels; need 4, or 8"):
        split_variance(jnp.zeros((2, 4, 4, 6)), 4)


def test_adding_to_eps_does_not_change_z():
    before = PARAMETRISATIONS["eps"](EPS, X, LOGSNR)
    after = add_to_eps(before, OUTPUT, LOGSNR)
    np.testing.assert_array_equal(after.eps, before.eps + OUTPUT)
    np.testing.assert_allclose(diffuse(after.x, after.eps, LOGSNR), X, rtol=1e-4, atol=1e-5)
