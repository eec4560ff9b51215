"""Laws of the driver of all samplers: noise, state, memory, trajectories, and what is compiled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.guidance import Denoiser, cfg, classifier
from cfgjax.diffusion.levels import Discrete
from cfgjax.diffusion.mixture import GaussianMixture
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import diffuse
from cfgjax.diffusion.samplers import (
    ancestral,
    clipped,
    ddim,
    ddim_encode,
    dpmpp_2m,
    dpmpp_2m_sde,
    heun,
    initial_noise,
    noise_at,
    sample,
    unipc,
)
from cfgjax.diffusion.samplers.driver import CLIP_MODES
from cfgjax.diffusion.schedules import logsnr_grid
from cfgjax.runs import sample_options

MIXTURE = GaussianMixture([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]], [0.4, 0.8, 0.6], [0.5, 0.3, 0.2])
KEYS = jax.random.split(jax.random.key(0), 6)
Z, GRID = initial_noise(KEYS, (2,)), logsnr_grid(8, "cosine", -10.0, 10.0)
NEW = [heun(), dpmpp_2m(), dpmpp_2m_sde(), unipc()]
every_sampler = pytest.mark.parametrize("sampler", [ancestral(0.3), ddim(), ddim(0.5), *NEW], ids=repr)


@pytest.mark.slow
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


@pytest.mark.optimised  # compares to the last bit
def test_the_noise_of_step_t_depends_only_on_the_keys_and_t():
    _, seen = sample(recorder(), lambda z, logsnr: Prediction(0 * z, z), KEYS, Z, GRID, save=lambda e: e.z)
    for t in range(1, 8):
        np.testing.assert_array_equal(seen[t], noise_at(KEYS, t, (2,)))


def test_no_noise_is_drawn_for_a_sampler_without_any():
    draws = lambda sampler: (
        "random_bits" in str(jax.make_jaxpr(lambda keys, z: sample(sampler, MIXTURE.predict, keys, z, GRID))(KEYS, Z))
    )
    silent = [ddim(), ddim(eta=0), heun(), heun(s_churn=0, s_noise=1.1), dpmpp_2m(), dpmpp_2m_sde(eta=0), unipc()]
    noisy = [ddim(eta=0.5), ddim(eta=jnp.float32(0)), ancestral(0.3), dpmpp_2m_sde(), heun(s_churn=1.0)]
    assert not any(map(draws, silent)) and all(map(draws, noisy))


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


@pytest.mark.parametrize(
    "sampler", [ancestral(0.0), ddim(), *NEW, recorder(), corrector()], ids=lambda s: type(s).__name__
)
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
            *([heun(s_churn=churn, s_max=50.0, s_noise=1.01) for churn in (1.0, 8.0)],) * (rules == [cfg()]),
            *([dpmpp_2m_sde(eta) for eta in (0.3, 1.0)],) * (rules == [cfg()]),
        ):
            before = len(traces)
            found = [run(rule, sampler, w) for rule in rules for sampler in samplers for w in (0.0, 2.0)]
            assert len(traces) == before + 1
            assert np.abs(found[0] - found[1]).max() > 1e-2


def test_rules_and_samplers_are_trees_that_can_be_rebuilt_from_their_leaves():
    made = *NEW, heun(s_churn=8.0, s_min=0.1), dpmpp_2m_sde(eta=0)
    for value in (ancestral(), ancestral(0.3), ddim(), ddim(0.5), classifier(cfg(), 2.0, "z"), *made):
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


def test_the_last_step_is_guided():
    # other implementations evaluate the conditional branch alone there
    label, null = jnp.arange(6) % 3, jnp.full(6, 3)
    rule, save = cfg()(MIXTURE.predict, label, null, 2.0), lambda evaluation: evaluation.z[None]
    for sampler in (ancestral(0.3), heun(), unipc()):
        x, seen = sample(sampler, rule, KEYS, Z, GRID[:5], save=save)
        last = jnp.full(6, GRID[4], jnp.float32)
        np.testing.assert_allclose(x, rule(seen[-1, 0], last).x, atol=1e-5)
        assert np.abs(x - MIXTURE.predict(seen[-1, 0], last, label).x).max() > 1e-3


def with_variance(z, logsnr):
    return MIXTURE.predict(z, logsnr)._replace(variance=jnp.full_like(z, 0.3))


@pytest.mark.slow
def test_samplers_take_a_learned_variance_and_the_levels_of_discrete_time():
    grid = Discrete("linear", 1000).grid(8)
    for sampler in (heun(), dpmpp_2m_sde(), unipc()):
        learned = sample(sampler, with_variance, KEYS, Z, grid)
        plain = sample(sampler, MIXTURE.predict, KEYS, Z, grid)
        np.testing.assert_allclose(learned, plain, rtol=1e-5, atol=1e-5)


def halved(z, logsnr):
    """A denoiser whose x̃ and ε̃ do not add up to z, as those of CFG++."""
    x, eps, _ = MIXTURE.predict(z, logsnr)
    return Prediction(x, 0.5 * eps)


def test_every_deterministic_sampler_starts_a_step_from_what_the_prediction_adds_up_to():
    first_of = lambda sampler: sample(sampler, halved, KEYS, Z, GRID, save=lambda e: e.z)[1][1]
    for sampler in (dpmpp_2m(), unipc()):
        np.testing.assert_allclose(first_of(sampler), first_of(ddim()), atol=1e-5)


@pytest.mark.parametrize("mode", ["x_only", "none"])
def test_a_mode_of_clipping_may_leave_eps_or_both_as_predicted(mode):
    before = Prediction(3 * Z, Z)
    after = clipped(before, jnp.float32(1.0), mode)
    np.testing.assert_array_equal(after.eps, before.eps)
    np.testing.assert_array_equal(after.x, jnp.clip(before.x, -1, 1) if mode == "x_only" else before.x)


def test_clipping_is_chosen_by_name_and_true_and_false_are_the_first_and_the_last():
    far = lambda z, logsnr: Prediction(2 + 3 * z, z)
    x = {clip: np.asarray(sample(ddim(), far, KEYS, Z, GRID[:4], clip=clip)) for clip in (True, False, *CLIP_MODES)}
    np.testing.assert_array_equal(x[True], x["consistent"])
    np.testing.assert_array_equal(x[False], x["none"])
    assert np.abs(x["consistent"]).max() <= 1 and np.abs(x["x_only"]).max() <= 1 < np.abs(x["none"]).max()
    assert CLIP_MODES == sample_options.CLIPPINGS
    with pytest.raises(UsageError, match="clip is 'x_onyl', did you mean 'x_only'"):
        sample(ddim(), far, KEYS, Z, GRID, clip="x_onyl")
