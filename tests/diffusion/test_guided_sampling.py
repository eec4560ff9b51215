"""Laws of sampling with classifier-free guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.diffusion.guidance import classifier_free
from cfgjax.diffusion.mixture import GaussianMixture
from cfgjax.diffusion.process import eps_from_x
from cfgjax.diffusion.samplers import SAMPLERS, initial_noise
from cfgjax.diffusion.schedules import logsnr_grid

MIXTURE = GaussianMixture([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]], [0.4, 0.8, 0.6], [0.5, 0.3, 0.2])
NULL = MIXTURE.num_components
SETTINGS = [("ancestral", {"v": 0.3}), ("ddim", {"eta": 0.0})]
settings = pytest.mark.parametrize(("name", "options"), SETTINGS, ids=["ancestral", "ddim"])


def sample(name, options, denoise, n=16, *, num_steps=16, shape=(2,), clip=False):
    keys = jax.random.split(jax.random.key(0), n)
    logsnrs = logsnr_grid(num_steps, "cosine", -10.0, 10.0)
    return SAMPLERS[name](keys, denoise, initial_noise(keys, shape), logsnrs, clip=clip, **options)


def guided_sampler(name, options):
    """run(label, w) and a list with an entry for each of its compilations."""
    traces = []

    @jax.jit
    def run(label, w):
        traces.append(None)
        return sample(name, options, classifier_free(MIXTURE.eps, label, w, NULL))

    return run, traces


@settings
def test_weights_zero_and_minus_one_sample_the_two_models(name, options):
    # op by op: compiled whole, two programs may round the same formula differently
    with jax.disable_jit():
        for w, label in ((0.0, 1), (-1.0, NULL)):
            guided = sample(name, options, classifier_free(MIXTURE.eps, 1, w, NULL), num_steps=4)
            plain = sample(name, options, lambda z, logsnr, label=label: MIXTURE.eps(z, logsnr, label), num_steps=4)
            np.testing.assert_array_equal(guided, plain)


@settings
def test_guidance_moves_samples_away_from_the_other_class_as_the_tilted_density_does(name, options):
    weights, n = jnp.array([-0.5, 0.0, 0.5, 1.0, 2.0, 4.0]), 1024
    pair = GaussianMixture([[-1.0], [1.0]], [0.7, 0.7], [0.5, 0.5])
    denoise = classifier_free(pair.eps, 1, jnp.repeat(weights, n), 2)
    found = sample(name, options, denoise, weights.size * n, num_steps=64, shape=(1,)).reshape(-1, n).mean(axis=1)

    grid = jnp.linspace(-8.0, 8.0, 4001)[:, None]
    log_tilted = pair.log_prob(grid, label=1) + weights[:, None] * pair.log_posterior(grid)[:, 1]
    tilted = jax.nn.softmax(log_tilted) @ grid[:, 0]
    assert np.all(np.diff(tilted) > 0)
    assert np.all(np.diff(found) > 0)
    np.testing.assert_allclose([found[1], tilted[1]], 1.0, atol=5 * 0.7 / 32)


@settings
def test_a_batch_of_weights_and_labels_is_as_good_as_separate_runs(name, options):
    run, _ = guided_sampler(name, options)
    w, label = jnp.array([0.0, -1.0, 1.0, 4.0] * 4), jnp.arange(16) % NULL
    together = run(label, w)
    for i in range(4):
        np.testing.assert_allclose(together[i], run(label[i], w[i])[i], atol=1e-5)


@settings
def test_every_weight_and_label_shares_one_compilation(name, options):
    run, traces = guided_sampler(name, options)
    found = [run(label, w) for label, w in ((0, 0.0), (0, 3.0), (1, -1.0), (NULL, 0.5))]
    assert len(traces) == 1
    assert np.abs(found[0] - found[1]).max() > 0.1
    np.testing.assert_allclose(found[2], found[3], atol=1e-4)  # both are unconditional


@settings
def test_images_are_clipped_after_guidance(name, options):
    # x̃ is 0.5 given the label, 3 without it: guided it is −2 and clips to −1; clipped first it would be 2·0.5 − 1 = 0
    def eps_fn(z, logsnr, label):
        x = jnp.where(label == NULL, 3.0, 0.5)
        return eps_from_x(z, jnp.broadcast_to(x[:, None], z.shape), logsnr)

    found = sample(name, options, classifier_free(eps_fn, 0, 1.0, NULL), clip=True)
    np.testing.assert_allclose(found, -1.0)
