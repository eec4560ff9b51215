"""Laws of exact tilting by weighted particles, on Gaussians with their closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.base.errors import UsageError
from cfgjax.diffusion import samplers
from cfgjax.diffusion.guidance import Denoiser, cfg, conditional
from cfgjax.diffusion.mixture import GaussianMixture
from cfgjax.diffusion.samplers import SAMPLERS, ancestral, initial_noise, tilted
from cfgjax.diffusion.samplers.particles import effective_sample_size, resampled
from cfgjax.diffusion.schedules import logsnr_grid
from cfgjax.diffusion.specs import parse, spec
from cfgjax.distributed.sharding import batch_sharding, make_mesh

MEAN, STD, WIDE, W = 0.8, 0.6, 1.0, 0.5
PRECISION = (1 + W) / STD**2 - W / WIDE**2  # of the tilted density, which is a Gaussian
TARGET = (1 + W) * MEAN / STD**2 / PRECISION, PRECISION**-0.5
one = lambda mean, std: GaussianMixture(np.array([[mean]]), np.array([std]), [1.0]).predict


def pair(z, logsnr, cond):
    """N(MEAN, STD²) where cond is 1, and N(0, WIDE²) where it is 0."""
    strong, weak = one(MEAN, STD)(z, logsnr), one(0.0, WIDE)(z, logsnr)
    return jax.tree.map(lambda a, b: jnp.where((cond == 1)[:, None], a, b), strong, weak)


@functools.partial(jax.jit, static_argnames=("n", "num_steps", "bound", "first"))
def draw(sampler, w, n=64, num_steps=16, bound=8.0, first=0):
    """n samples from the first index on, and the effective sample size of each level."""
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(0)))(first + jnp.arange(n))
    denoise = cfg()(pair, jnp.ones(n, int), jnp.zeros(n, int), w)
    kept = lambda evaluation: getattr(evaluation.state, "ess", jnp.zeros(n))
    logsnrs = jnp.linspace(-bound, bound, num_steps)
    return samplers.sample(sampler, denoise, keys, initial_noise(keys, (1,)), logsnrs, save=kept)


def moments(x):
    return np.array([np.mean(x), np.std(x)])


@pytest.mark.slow
def test_weighted_particles_sample_the_tilted_density_which_guided_scores_alone_do_not():
    options = dict(n=2**14, num_steps=800, bound=14.0)
    np.testing.assert_allclose(TARGET, [0.909, 0.522], atol=5e-4)
    weighted = moments(draw(tilted(particles=128), W, **options)[0])
    unweighted = moments(draw(ancestral(0.0), W, **options)[0])
    np.testing.assert_allclose(weighted, TARGET, atol=0.012)
    np.testing.assert_allclose(unweighted, [0.979, 0.489], atol=0.015)


@pytest.mark.slow
@pytest.mark.parametrize("w", [0.0, -1.0])
def test_without_weights_it_is_the_ancestral_sampler(w):
    found, ess = draw(tilted(v=0.3), w)
    np.testing.assert_allclose(found, draw(ancestral(0.3), w)[0], atol=1e-5)  # two programs differ in rounding
    np.testing.assert_array_equal(ess, np.full((16, 64), 16.0))


@pytest.mark.slow
def test_a_group_depends_on_its_own_samples_alone_and_not_on_the_batch():
    every, ess = draw(tilted(particles=8), 2.0)
    some, some_ess = draw(tilted(particles=8), 2.0, n=16, first=24)
    np.testing.assert_allclose(some, every[24:40], atol=1e-5)
    np.testing.assert_allclose(some_ess, ess[:, 24:40], rtol=1e-4)
    assert 1 <= ess.min() < 6
    np.testing.assert_array_equal(ess.reshape(16, 8, 8), np.repeat(ess[:, ::8, None], 8, axis=2))


@pytest.mark.slow
def test_a_batch_over_devices_has_the_same_groups():
    sharding = batch_sharding(make_mesh())
    w = jnp.full(64, 2.0)
    for size in (8, 16):
        alone = draw(tilted(particles=size), w)[0]
        spread = draw(tilted(particles=size), jax.device_put(w, sharding))[0]
        np.testing.assert_allclose(spread, alone, atol=1e-5)


@pytest.mark.slow
def test_systematic_resampling_copies_each_sample_as_often_as_its_weight_says_within_one():
    size, groups = 16, 200
    keys = jax.random.split(jax.random.key(1), size * groups)
    log_weights = jnp.tile(jax.random.normal(jax.random.key(2), (size,)), groups)
    x, after = resampled(keys, 3, jnp.arange(size * groups)[:, None] * 1.0, log_weights, jnp.ones(groups, bool), size)
    chosen = np.asarray(x[:, 0], int)
    np.testing.assert_array_equal(chosen // size, np.arange(size * groups) // size)  # within the group
    expected = size * jax.nn.softmax(log_weights[:size])
    counts = np.stack([np.bincount(group % size, minlength=size) for group in chosen.reshape(groups, size)])
    assert np.all(np.abs(counts - expected) < 1)
    np.testing.assert_allclose(counts.mean(axis=0), expected, atol=4 * 0.5 / np.sqrt(groups))
    np.testing.assert_array_equal(after, np.zeros(size * groups))
    assert len({tuple(row) for row in counts}) > 1  # groups draw independently


@pytest.mark.slow
def test_groups_that_are_not_resampled_keep_their_samples_and_weights():
    keys, z = jax.random.split(jax.random.key(1), 8), jnp.arange(8.0)[:, None]
    log_weights = jnp.array([0.0, 5.0, 0.0, 0.0] * 2)
    x, after = resampled(keys, 0, z, log_weights, jnp.array([False, True]), 4)
    np.testing.assert_array_equal(x[:4], z[:4])
    np.testing.assert_array_equal(after[:4], log_weights[:4])
    assert (np.asarray(x[4:]) == 5).sum() >= 3


def test_the_effective_sample_size_is_the_number_of_equal_weights():
    log_weights = jnp.array([3.0, 3.0, 3.0, 3.0, 7.0, 7.0, -jnp.inf, -jnp.inf, 1.0, -90.0, -90.0, -90.0])
    np.testing.assert_allclose(effective_sample_size(log_weights, 4), [4, 2, 1], rtol=1e-5)


def test_the_text_of_the_sampler_is_the_sampler():
    for text in ("tilted()", "tilted(particles=4)", "tilted(v=0.3, particles=64)"):
        assert spec(parse(text, SAMPLERS, "sampler")) == text


@pytest.mark.slow
def test_changing_w_or_v_compiles_nothing():
    before = draw._cache_size()
    for v, w in ((0.0, 0.5), (0.3, 1.5), (1.0, -2.0)):
        draw(tilted(v, particles=4), w, n=8, num_steps=4)
    assert draw._cache_size() == before + 1


def run(sampler, denoise, n=32):
    keys = jax.random.split(jax.random.key(0), n)
    logsnrs = logsnr_grid(4, "cosine", -5.0, 5.0)
    return jax.eval_shape(lambda: samplers.sample(sampler, denoise, keys, initial_noise(keys, (1,)), logsnrs))


def test_bad_arguments_are_one_line_errors():
    ones, zeros = jnp.ones(32, int), jnp.zeros(32, int)
    guided = cfg()(pair, ones, zeros, 1.0)
    remembering = Denoiser(run, jnp.sum, None, lambda z, logsnr, memory: (guided.branches(z, logsnr), memory))
    for make, message in (
        (lambda: run(tilted(particles=12), guided), "a batch of 32 samples is not divisible by the 12 particles"),
        (lambda: run(tilted(), conditional()(pair, ones)), "needs a rule that combines two predictions"),
        (lambda: run(tilted(), remembering), "rule must have no memory"),
        (lambda: tilted(particles=1), "particles is 1; need an integer of at least 2"),
        (lambda: tilted(particles=2.5), "particles is 2.5; need an integer"),
        (lambda: tilted(v=2), "v is 2; need a number in"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            make()
        assert "\n" not in str(error.value)
