"""Laws of the training objective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.diffusion.levels import Continuous
from cfgjax.diffusion.losses import draw, eps_loss
from cfgjax.diffusion.mixture import GaussianMixture
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import eps_from_x

MIXTURE = GaussianMixture(np.array([[1.0, 0.0], [-0.5, 0.8]]), np.array([0.3, 0.5]), [0.5, 0.5])
exact = jax.jit(MIXTURE.predict)
NULL = MIXTURE.num_components
N = 20_000


@pytest.fixture(scope="module")
def batch():
    """(x, label, eps, logsnr) of N examples, half of the labels dropped, at levels where the data matters."""
    x, label = MIXTURE.sample(jax.random.key(0), N)
    eps, u, label = draw(jax.random.key(1), x, label, null=jnp.full_like(label, NULL), p_uncond=0.5)
    return x, label, eps, Continuous("uniform", -4.0, 4.0).logsnr(u)


def of(eps):
    """A prediction of which the loss sees ε alone."""
    return Prediction(None, eps)


PREDICTORS = {
    "shifted": lambda z, logsnr, label: of(exact(z, logsnr, label).eps + 0.1),
    "scaled up": lambda z, logsnr, label: of(1.1 * exact(z, logsnr, label).eps),
    "scaled down": lambda z, logsnr, label: of(0.9 * exact(z, logsnr, label).eps),
    "blind to the label": lambda z, logsnr, label: exact(z, logsnr),
    "taking null for class 0": lambda z, logsnr, label: exact(z, logsnr, label % NULL),
    "one level off": lambda z, logsnr, label: exact(z, logsnr + 1, label),
}


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_the_exact_eps_has_the_smallest_loss(predictor, batch):
    excess = eps_loss(PREDICTORS[predictor], *batch) - eps_loss(exact, *batch)
    assert excess.mean() > 4 * excess.std() / np.sqrt(N)


def test_predicting_the_true_noise_has_loss_zero(batch):
    x, label, eps, logsnr = batch
    np.testing.assert_array_equal(eps_loss(lambda *_: of(eps), *batch), np.zeros(N))
    from_data = eps_loss(lambda z, logsnr, label: of(eps_from_x(z, x, logsnr)), x, label, eps, logsnr)
    np.testing.assert_allclose(from_data, 0, atol=1e-8)


def test_each_example_has_its_own_loss_per_dimension():
    eps = jnp.zeros((3, 4, 4, 2))
    prediction = jnp.array([0.0, 1.0, 2.0])[:, None, None, None] * jnp.ones_like(eps)
    loss = eps_loss(lambda *_: of(prediction.astype(jnp.bfloat16)), eps, None, eps, jnp.zeros(3))
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, [0, 1, 4])


def draw_many(key, p_uncond=0.2):
    """eps [N], u [N] and labels [N], of which all were class 3 before some became 7."""
    eps, u, label = draw(key, jnp.zeros((N, 1)), jnp.full(N, 3), null=jnp.full(N, 7), p_uncond=p_uncond)
    return eps[:, 0], u, label


@pytest.mark.parametrize("p_uncond", [0.0, 0.1, 0.5, 1.0])
def test_labels_are_dropped_at_the_given_rate(p_uncond):
    _, _, label = draw_many(jax.random.key(0), p_uncond)
    assert set(np.unique(label)) <= {3, 7}
    error = 5 * np.sqrt(p_uncond * (1 - p_uncond) / N)
    np.testing.assert_allclose(np.mean(label == 7), p_uncond, atol=error)


@pytest.mark.parametrize(
    ("schedule", "quantiles"),
    [("cosine", [-3.68499, -1.762619, 0, 1.762619, 3.68499]), ("uniform", [-16, -10, 0, 10, 16])],
)
def test_levels_follow_the_schedule(schedule, quantiles):
    _, u, _ = draw_many(jax.random.key(0))
    logsnr, probability = Continuous(schedule).logsnr(u), np.array([0.1, 0.25, 0.5, 0.75, 0.9])
    share_below = [np.mean(logsnr < quantile) for quantile in quantiles]
    np.testing.assert_allclose(share_below, probability, atol=5 * 0.5 / np.sqrt(N))


def test_noise_is_standard_normal():
    eps, _, _ = draw_many(jax.random.key(0))
    np.testing.assert_allclose([eps.mean(), eps.std(), (eps**4).mean() / 3], [0, 1, 1], atol=0.07)


def test_noise_level_and_label_are_independent():
    correlation = np.corrcoef(np.stack(draw_many(jax.random.key(0), 0.5)))
    np.testing.assert_allclose(correlation, np.eye(3), atol=5 / np.sqrt(N))


def test_the_key_determines_the_draw():
    first, again, other = (draw_many(jax.random.key(seed)) for seed in (0, 0, 1))
    for ours, same, different in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(ours, same)
        assert np.any(ours != different)
