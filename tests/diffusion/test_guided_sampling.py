"""Laws of sampling with classifier-free guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.diffusion import samplers
from cfgjax.diffusion.guidance import cfg
from cfgjax.diffusion.mixture import GaussianMixture
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import eps_from_x
from cfgjax.diffusion.samplers import ancestral, ddim, initial_noise
from cfgjax.diffusion.schedules import logsnr_grid

MIXTURE = GaussianMixture([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]], [0.4, 0.8, 0.6], [0.5, 0.3, 0.2])
NULL = MIXTURE.num_components
every_sampler = pytest.mark.parametrize("sampler", [ancestral(0.3), ddim()], ids=repr)


def sample(sampler, denoise, n=16, *, num_steps=16, shape=(2,), clip=False):
    keys = jax.random.split(jax.random.key(0), n)
    logsnrs = logsnr_grid(num_steps, "cosine", -10.0, 10.0)
    return samplers.sample(sampler, denoise, keys, initial_noise(keys, shape), logsnrs, clip=clip)


def guided(predict, label, w, null=NULL):
    """The denoiser of classifier-free guidance with label, an int or [B]."""

    def denoise(z, logsnr):
        cond = jnp.broadcast_to(label, z.shape[:1])
        return cfg()(predict, cond, jnp.full_like(cond, null), w)(z, logsnr)

    return denoise


def guided_sampler(sampler):
    """run(label, w) and a list with an entry for each of its compilations."""
    traces = []

    @jax.jit
    def run(label, w):
        traces.append(None)
        return sample(sampler, guided(MIXTURE.predict, label, w))

    return run, traces


@every_sampler
def test_weights_zero_and_minus_one_sample_the_two_models(sampler):
    run, _ = guided_sampler(sampler)
    plain = jax.jit(lambda label: sample(sampler, lambda z, logsnr: MIXTURE.predict(z, logsnr, label)))
    for w, label in ((0.0, 1), (-1.0, NULL)):
        np.testing.assert_allclose(run(1, w), plain(label), atol=1e-5)


@every_sampler
@pytest.mark.slow
def test_guidance_moves_samples_away_from_the_other_class_as_the_tilted_density_does(sampler):
    weights, n = jnp.array([-0.5, 0.0, 0.5, 1.0, 2.0, 4.0]), 1024
    pair = GaussianMixture([[-1.0], [1.0]], [0.7, 0.7], [0.5, 0.5])
    denoise = guided(pair.predict, 1, jnp.repeat(weights, n), 2)
    found = sample(sampler, denoise, weights.size * n, num_steps=64, shape=(1,)).reshape(-1, n).mean(axis=1)

    grid = jnp.linspace(-8.0, 8.0, 4001)[:, None]
    log_tilted = pair.log_prob(grid, label=1) + weights[:, None] * pair.log_posterior(grid)[:, 1]
    tilted = jax.nn.softmax(log_tilted) @ grid[:, 0]
    assert np.all(np.diff(tilted) > 0)
    assert np.all(np.diff(found) > 0)
    np.testing.assert_allclose([found[1], tilted[1]], 1.0, atol=5 * 0.7 / 32)


@every_sampler
def test_a_batch_of_weights_and_labels_equals_separate_runs(sampler):
    run, _ = guided_sampler(sampler)
    w, label = jnp.array([0.0, -1.0, 1.0, 4.0] * 4), jnp.arange(16) % NULL
    together = run(label, w)
    for i in range(4):
        np.testing.assert_allclose(together[i], run(label[i], w[i])[i], atol=1e-5)


@every_sampler
def test_every_weight_and_label_shares_one_compilation(sampler):
    run, traces = guided_sampler(sampler)
    found = [run(label, w) for label, w in ((0, 0.0), (0, 3.0), (1, -1.0), (NULL, 0.5))]
    assert len(traces) == 1
    assert np.abs(found[0] - found[1]).max() > 0.1
    np.testing.assert_allclose(found[2], found[3], atol=1e-4)  # both are unconditional


@every_sampler
def test_images_are_clipped_after_guidance(sampler):
    # x̃ is 0.5 given the label, 3 without it: guided it is −2 and clips to −1; clipped first it would be 2·0.5 − 1 = 0
    def predict(z, logsnr, label):
        x = jnp.broadcast_to(jnp.where(label == NULL, 3.0, 0.5)[:, None], z.shape)
        return Prediction(x, eps_from_x(z, x, logsnr))

    found = sample(sampler, guided(predict, 0, 1.0), clip=True)
    np.testing.assert_allclose(found, -1.0)
