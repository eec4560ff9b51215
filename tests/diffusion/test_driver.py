"""Laws of the driver of all samplers: noise, state, memory, trajectories, and what is compiled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.diffusion.guidance import Denoiser, cfg, classifier
from cfgjax.diffusion.mixture import GaussianMixture
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import diffuse
from cfgjax.diffusion.samplers import ancestral, clipped, ddim, ddim_encode, initial_noise, noise_at, sample
from cfgjax.diffusion.schedules import logsnr_grid

MIXTURE = GaussianMixture([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]], [0.4, 0.8, 0.6], [0.5, 0.3, 0.2])
KEYS = jax.random.split(jax.random.key(0), 6)
Z, GRID = initial_noise(KEYS, (2,)), logsnr_grid(8, "cosine", -10.0, 10.0)
every_sampler = pytest.mark.parametrize("sampler", [ancestral(0.3), ddim(), ddim(0.5)], ids=repr)


@every_sampler
def test_the_trajectory_is_every_level_in_order_and_changes_no_sample(sampler):
    run = lambda **options: jax.jit(lambda z: sample(sampler, MIXTURE.predict, KEYS, z, GRID, **options))(Z)
    x, seen = run(save=lambda evaluation: evaluation)
    np.testing.assert_allclose(x, run(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(seen.level.logsnr, GRID, rtol=1e-6)
    np.testing.assert_allclose(seen.level.logsnr_next[:-1], GRID[1:], rtol=1e-6)
    np.testing.assert_array_equal(seen.level.step, np.arange(8))
    np.testing.assert_array_equal(seen.level.last, np.arange(8) == 7)
    np.testing.assert_array_equal(seen.z[0], Z)
    np.testing.assert_allclose(seen.prediction.x[-1], x, rtol=1e-6)
    for z, logsnr, found in zip(seen.z, GRID, seen.prediction.x, strict=True):
        np.testing.assert_allclose(found, MIXTURE.predict(z, logsnr).x, rtol=1e-4, atol=1e-5)


def test_save_selects_the_contents_of_the_trajectory():
    keep = lambda evaluation: {"mean": evaluation.prediction.x.mean(), "z": evaluation.z[:1]}
    _, kept = sample(ddim(), MIXTURE.predict, KEYS, Z, GRID, save=keep)
    assert jax.tree.map(jnp.shape, kept) == {"mean": (8,), "z": (8, 1, 2)}


@dataclasses.dataclass(frozen=True)
class recorder:
    """A user's sampler: nothing registered, and none of the optional attributes."""

    def init(self, z):
        return jnp.zeros((9, *z.shape))

    def step(self, denoise, z, state, level, noise):
        return denoise(z, level.logsnr).x + noise, state.at[level.step].set(noise)

    def evaluations(self, num_steps):
        return num_steps


def test_the_noise_of_step_t_depends_only_on_the_keys_and_t():
    _, seen = sample(recorder(), lambda z, logsnr: Prediction(0 * z, z), KEYS, Z, GRID, save=lambda e: e.z)
    for t in range(1, 8):
        np.testing.assert_array_equal(seen[t], noise_at(KEYS, t, (2,)))


def test_no_noise_is_drawn_for_a_sampler_without_any():
    draws = lambda sampler: (
        "random_bits" in str(jax.make_jaxpr(lambda keys, z: sample(sampler, MIXTURE.predict, keys, z, GRID))(KEYS, Z))
    )
    assert not draws(ddim()) and not draws(ddim(eta=0))
    assert draws(ddim(eta=0.5)) and draws(ddim(eta=jnp.float32(0))) and draws(ancestral(0.3))


def counting(z, logsnr, memory):
    """A denoiser whose x̂ is the number of levels before this one, which it remembers."""
    return Prediction(0 * z + memory[:, None], z), memory + 1


@dataclasses.dataclass(frozen=True)
class corrector:
    """A sampler that evaluates twice a level, the second time inside a branch."""

    draws_noise = False

    def init(self, z):
        return 0 * z

    def step(self, denoise, z, state, level, noise):
        first = denoise(z, level.logsnr)
        again = lambda: denoise(z, level.logsnr_next).x
        return first.x, jax.lax.cond(level.last, lambda: 0 * z, again)


@pytest.mark.parametrize("sampler", [ancestral(0.0), ddim(), recorder(), corrector()], ids=lambda s: type(s).__name__)
def test_a_memory_is_updated_once_per_level_and_starts_anew_for_each_sample(sampler):
    denoise = Denoiser(counting, lambda z: jnp.zeros(len(z)))
    for _ in range(2):
        x, seen = sample(sampler, denoise, KEYS, Z, GRID, save=lambda evaluation: evaluation.prediction.x)
        np.testing.assert_array_equal(seen[:, 0, 0], np.arange(8))
        np.testing.assert_array_equal(x, np.full((6, 2), 7))


def test_changing_a_number_in_a_rule_or_a_sampler_compiles_nothing():
    traces = []
    guide = jax.tree_util.Partial(lambda z, logsnr, label: MIXTURE.log_posterior(z, logsnr)[jnp.arange(6), label])

    @jax.jit
    def run(rule, sampler, w):
        traces.append((rule, sampler))
        label = jnp.arange(6) % 3
        return sample(sampler, rule(MIXTURE.predict, label, jnp.full(6, 3), w), KEYS, Z, GRID)

    for rules in ([cfg()], [classifier(cfg(), scale, "eps", guide) for scale in (0.0, 1.0, 2.5)]):
        for samplers in (
            [ancestral(v) for v in (0, 0.3, 1.0)],
            [ddim(eta) for eta in (0.1, 0.5, 1)],
            [ddim(), ddim(0)],
        ):
            before = len(traces)
            found = [run(rule, sampler, w) for rule in rules for sampler in samplers for w in (0.0, 2.0)]
            assert len(traces) == before + 1
            assert np.abs(found[0] - found[1]).max() > 1e-2


def test_rules_and_samplers_are_trees_that_can_be_rebuilt_from_their_leaves():
    for value in (ancestral(), ancestral(0.3), ddim(), ddim(0.5), classifier(cfg(), 2.0, "z")):
        leaves, tree = jax.tree.flatten(value)
        assert tree.unflatten(leaves) == value
    assert jax.tree.leaves(ddim(0.0)) == [] and jax.tree.leaves(ddim(0.5)) == [0.5]


def test_rules_without_numbers_are_different_structures():
    assert jax.tree.structure(cfg()) != jax.tree.structure(cfg().at_zero)


def test_sampling_from_an_encoding_returns_the_data():
    with jax.enable_x64(True):
        mixture = GaussianMixture(*(np.asarray(a, float) for a in (MIXTURE.means, MIXTURE.stds, MIXTURE.weights)))
        x, grid = mixture.sample(jax.random.key(0), 6)[0], logsnr_grid(1000, "uniform", -8.0, 12.0)
        z = jax.jit(lambda x: ddim_encode(mixture.predict, x, grid))(x)
        back = jax.jit(lambda z: sample(ddim(), mixture.predict, KEYS, z, grid))(z)
    np.testing.assert_allclose(back, x, atol=0.05)
    assert np.abs(z - x).max() > 0.5


def test_a_clipped_prediction_adds_up_to_the_same_z_and_hides_no_overflow():
    before = Prediction(3 * Z, Z)
    z = diffuse(before.x, before.eps, 1.0)
    after = clipped(before, jnp.float32(1.0))
    assert jnp.abs(after.x).max() <= 1
    np.testing.assert_allclose(diffuse(after.x, after.eps, 1.0), z, atol=1e-5)
    assert jnp.isnan(clipped(Prediction(Z.at[0, 0].set(jnp.inf), Z), jnp.float32(0.0)).x[0, 0])
