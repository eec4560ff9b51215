import jax
import numpy as np
import pytest

from cfgjax.diffusion.mixture import GaussianMixture
from cfgjax.diffusion.samplers import ancestral, initial_noise, sample
from cfgjax.diffusion.schedules import logsnr_grid
from cfgjax.evaluation.features.tilted import tilted_frontier
from cfgjax.evaluation.metrics.manifold import knn_entropy

NUM = 4000
MEANS = np.array([[0.0, 1.0], [0.866, -0.5], [-0.866, -0.5]], np.float32)
TRIANGLE = GaussianMixture(MEANS, np.full(3, 0.4, np.float32), np.full(3, 1 / 3, np.float32))


@pytest.mark.slow
def test_without_guidance_the_tilted_density_is_that_of_the_data():
    (found,) = tilted_frontier(TRIANGLE, [0.0])
    x, label = TRIANGLE.sample(jax.random.key(0), 100_000)
    log_posterior = np.take_along_axis(np.asarray(TRIANGLE.log_posterior(x)), np.asarray(label)[:, None], axis=1)
    assert found["log_posterior"] == pytest.approx(log_posterior.mean(), abs=float(4 * log_posterior.std() / 300))
    surprise = -np.asarray(TRIANGLE.log_prob(x))
    assert found["entropy"] == pytest.approx(surprise.mean(), abs=float(4 * surprise.std() / 300))


def test_the_entropy_of_one_gaussian_is_its_own_whatever_the_weight():
    single = GaussianMixture(np.zeros((1, 2), np.float32), np.array([0.5], np.float32), np.ones(1, np.float32))
    for found in tilted_frontier(single, [-0.5, 0.0, 3.0]):
        assert found["entropy"] == pytest.approx(np.log(2 * np.pi * np.e * 0.25), abs=1e-4)
        assert found["log_posterior"] == pytest.approx(0, abs=1e-6)


def test_a_larger_weight_gives_more_typical_and_less_diverse_samples():
    found = tilted_frontier(TRIANGLE, [-0.5, 0.0, 0.5, 1.0, 2.0, 4.0])
    assert (np.diff([f["log_posterior"] for f in found]) > 0).all()
    assert (np.diff([f["entropy"] for f in found]) < 0).all()


@pytest.mark.slow
def test_the_exact_sampler_without_guidance_agrees_with_the_closed_form():
    label = np.arange(NUM) % 3
    keys = jax.random.split(jax.random.key(1), NUM)
    denoise = lambda z, logsnr: TRIANGLE.predict(z, logsnr, label)
    x = sample(ancestral(0.3), denoise, keys, initial_noise(keys, (2,)), logsnr_grid(512))
    (found,) = tilted_frontier(TRIANGLE, [0.0])
    assert knn_entropy(np.asarray(x)) == pytest.approx(found["entropy"], abs=0.06)
    own = np.take_along_axis(np.asarray(TRIANGLE.log_posterior(x)), label[:, None], axis=1)
    assert own.mean() == pytest.approx(found["log_posterior"], abs=0.02)


@pytest.mark.slow
def test_the_grid_is_fine_enough(monkeypatch):
    coarse = tilted_frontier(TRIANGLE, [1.0])[0]
    monkeypatch.setattr("cfgjax.evaluation.features.tilted.POINTS_PER_AXIS", 701)
    assert tilted_frontier(TRIANGLE, [1.0])[0] == pytest.approx(coarse, abs=1e-5)
