"""Laws of the pair (x̂, ε̂) and of the parametrisations that make it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.diffusion.prediction import PARAMETRISATIONS, add_to_eps, split_variance
from cfgjax.diffusion.process import diffuse

X, EPS, OUTPUT = jax.random.normal(jax.random.key(0), (3, 9, 4, 2))
LOGSNR = jnp.linspace(-8.0, 8.0, 9)
every_parametrisation = pytest.mark.parametrize("name", PARAMETRISATIONS)


@every_parametrisation
def test_the_pair_adds_up_to_z_for_any_output(name):
    z = diffuse(X, EPS, LOGSNR)
    x, eps, variance = PARAMETRISATIONS[name](OUTPUT, z, LOGSNR)
    np.testing.assert_allclose(diffuse(x, eps, LOGSNR), z, rtol=1e-4, atol=1e-5)
    assert variance is None


def test_a_network_that_predicts_the_true_noise_recovers_the_data():
    found = PARAMETRISATIONS["eps"](EPS, diffuse(X, EPS, LOGSNR), LOGSNR)
    np.testing.assert_array_equal(found.eps, EPS)
    np.testing.assert_allclose(found.x, X, atol=1e-4)


@every_parametrisation
def test_the_second_half_of_the_channels_is_the_learned_variance(name):
    found = PARAMETRISATIONS[name](jnp.concatenate([OUTPUT, 2 * X - 1], axis=-1), EPS, LOGSNR)
    np.testing.assert_allclose(found.variance, X, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, found[:2], PARAMETRISATIONS[name](OUTPUT, EPS, LOGSNR)[:2])


@every_parametrisation
def test_a_prediction_is_float32_whatever_the_network_computes_in(name):
    found = PARAMETRISATIONS[name](OUTPUT.astype(jnp.bfloat16), X, LOGSNR)
    assert (found.x.dtype, found.eps.dtype) == (jnp.float32, jnp.float32)


def test_a_wrong_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="has 6 channels; need 4, or 8"):
        split_variance(jnp.zeros((2, 4, 4, 6)), 4)


def test_adding_to_eps_does_not_change_z():
    before = PARAMETRISATIONS["eps"](EPS, X, LOGSNR)
    after = add_to_eps(before, OUTPUT, LOGSNR)
    np.testing.assert_array_equal(after.eps, before.eps + OUTPUT)
    np.testing.assert_allclose(diffuse(after.x, after.eps, LOGSNR), X, rtol=1e-4, atol=1e-5)
