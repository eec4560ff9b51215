"""Laws of the samplers, on Gaussian mixtures with their exact denoiser."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.base.errors import UsageError
from cfgjax.diffusion import samplers
from cfgjax.diffusion.guidance import evaluations, interval
from cfgjax.diffusion.mixture import GaussianMixture
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import alpha_sigma, diffuse, eps_from_x
from cfgjax.diffusion.samplers import (
    ancestral,
    ddim,
    dpmpp_2m,
    dpmpp_2m_sde,
    evaluated_levels,
    heun,
    initial_noise,
    unipc,
)
from cfgjax.diffusion.schedules import logsnr_grid

MEANS = np.array([[1.5, 0.0], [-0.75, 1.3], [-0.75, -1.3]])
MIXTURE = GaussianMixture(MEANS, [0.2, 0.3, 0.25], [0.5, 0.3, 0.2])
WIDE = GaussianMixture([[2.0, -3.0]], [0.5], [1.0])
X = (0.6, -2.0)
NEW = [heun(), heun(s_churn=20.0, s_noise=1.0), dpmpp_2m(), dpmpp_2m_sde(), unipc()]
in_distribution = pytest.mark.parametrize(
    "sampler", [*(ancestral(v) for v in (0.0, 0.3, 1.0)), ddim(), ddim(1.0), NEW[1], dpmpp_2m_sde()], ids=repr
)
every_sampler = pytest.mark.parametrize(
    "sampler", [*(ancestral(v) for v in (0.0, 0.3, 1.0)), ddim(), ddim(1.0), *NEW], ids=repr
)


def keys_of(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


@functools.partial(jax.jit, static_argnames=("denoise", "clip"))
def sample(sampler, denoise, keys, logsnrs, *, clip=False):
    return samplers.sample(sampler, denoise, keys, initial_noise(keys, (2,)), logsnrs, clip=clip)


sample_from = jax.jit(samplers.sample, static_argnames="denoise")


@functools.cache
def oracle(x, reveal_at=jnp.inf):
    """A denoiser that knows x. From λ = reveal_at on it predicts z/10 instead, which the sampler then returns."""

    def denoise(z, logsnr):
        predicted = jnp.where(logsnr[:, None] < reveal_at, jnp.asarray(x, z.dtype), 0.1 * z)
        return Prediction(predicted, eps_from_x(z, predicted, logsnr))

    return denoise


def conditional(z, logsnr):
    """The exact denoiser of classes 0, 1, 2, 0, 1, 2, …"""
    return MIXTURE.predict(z, logsnr, jnp.arange(len(z)) % 3)


@in_distribution
def test_samples_have_the_mixtures_weights_and_moments(sampler):
    n = 2048
    x = sample(sampler, MIXTURE.predict, keys_of(n), logsnr_grid(256))
    component = np.argmax(MIXTURE.log_posterior(x), axis=-1)
    share, weight = np.bincount(component) / n, MIXTURE.weights
    assert np.all(np.abs(share - weight) < 4 * np.sqrt(weight * (1 - weight) / n))
    standard = (x - MEANS[component]) / MIXTURE.stds[component][:, None]
    np.testing.assert_allclose(standard.mean(axis=0), 0, atol=4 / np.sqrt(n))
    np.testing.assert_allclose(standard.std(axis=0), 1, atol=4 / np.sqrt(n))


@in_distribution
def test_conditional_samples_come_from_their_component(sampler):
    n = 512
    x = sample(sampler, conditional, keys_of(3 * n), logsnr_grid(128))
    standard = (np.reshape(x, (n, 3, 2)) - MEANS) / np.reshape(MIXTURE.stds, (3, 1))
    np.testing.assert_allclose(standard.mean(axis=(0, 2)), 0, atol=4 / np.sqrt(2 * n))
    np.testing.assert_allclose(standard.std(axis=(0, 2)), 1, atol=4 / np.sqrt(2 * n))


MARGINAL = [ancestral(0.0), ddim(), ddim(0.5), ddim(1.0), dpmpp_2m(), dpmpp_2m_sde(), dpmpp_2m_sde(0.5), unipc()]


@pytest.mark.parametrize("sampler", MARGINAL, ids=repr)
def test_given_x_every_level_has_the_marginal_of_the_process(sampler):
    # a noise used twice, at two steps or at the start and at a step, would show as another variance
    logsnrs, keys = np.array([-2.0, -1.0, 0.8]), keys_of(40_000)
    z = diffuse(jnp.broadcast_to(jnp.array(X), (40_000, 2)), initial_noise(keys, (2,)), logsnrs[0])
    revealed = sample_from(sampler, oracle(X, 0.8), keys, z, logsnrs)
    alpha, sigma = alpha_sigma(0.8)
    standard = (10 * revealed - alpha * jnp.array(X)) / sigma
    np.testing.assert_allclose(standard.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose(standard.std(axis=0), 1, atol=0.015)


@jax.jit
def one_reverse_step(sampler, keys):
    """z at λ' = −1 for z = 1 at λ = −3 and a denoiser that knows x = 2."""
    z = jnp.ones((len(keys), 1))
    return 10 * samplers.sample(sampler, oracle(2.0, -1.0), keys, z, jnp.array([-3.0, -1.0]))


@pytest.mark.parametrize(
    ("v", "variance"), [(0.0, 0.6321205588), (0.2, 0.6664832452), (0.3, 0.6843588636), (1.0, 0.8236572376)]
)
def test_the_reverse_step_has_mean_and_variance_of_the_paper(v, variance):
    n = 100_000
    z_next = one_reverse_step(ancestral(v), keys_of(n))
    np.testing.assert_allclose(z_next.mean(), 0.3222791550 + 0.4484113385 * 2, atol=4 * np.sqrt(variance / n))
    np.testing.assert_allclose(z_next.var(), variance, rtol=4 * np.sqrt(2 / n))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_noise_of_ddim_has_eta_squared_times_the_posterior_variance(eta):
    n, variance = 100_000, eta**2 * 0.6321205588
    found = one_reverse_step(ddim(eta), keys_of(n)).var()
    np.testing.assert_allclose(found, variance, rtol=4 * np.sqrt(2 / n), atol=1e-10)


def test_ddim_at_eta_one_is_ancestral_at_v_zero():
    with jax.enable_x64(True):
        mixture = GaussianMixture(MEANS, [0.2, 0.3, 0.25], [0.5, 0.3, 0.2])
        keys = keys_of(32)
        arguments = mixture.predict, keys, initial_noise(keys, (2,), jnp.float64), logsnr_grid(32)
        run = jax.jit(lambda sampler: samplers.sample(sampler, *arguments))
        np.testing.assert_allclose(run(ddim(1.0)), run(ancestral(0.0)), atol=1e-9)
        assert np.abs(run(ddim(1.0)) - run(ancestral(0.3))).max() > 1e-3


def in_float64(*samplers_):
    """Samples of the mixture in float64 by each sampler, from the same noise."""
    with jax.enable_x64(True):
        mixture = GaussianMixture(MEANS, [0.2, 0.3, 0.25], [0.5, 0.3, 0.2])
        keys = keys_of(32)
        arguments = mixture.predict, keys, initial_noise(keys, (2,), jnp.float64), logsnr_grid(32)
        run = jax.jit(lambda sampler: samplers.sample(sampler, *arguments))
        return [np.asarray(run(sampler)) for sampler in samplers_]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "limit"),
    [
        (heun(s_churn=jnp.float32(0)), heun()),
        (heun(s_churn=30.0, s_min=1.0, s_max=0.5), heun()),
        (dpmpp_2m_sde(eta=0), dpmpp_2m()),
        (dpmpp_2m_sde(eta=jnp.float32(0)), dpmpp_2m()),
    ],
    ids=repr,
)
def test_without_noise_a_stochastic_sampler_is_its_deterministic_form(sampler, limit):
    np.testing.assert_allclose(*in_float64(sampler, limit), atol=1e-9)
    assert np.abs(np.subtract(*in_float64(heun(s_churn=30.0), dpmpp_2m_sde()))).max() > 1e-3


@jax.jit
def first_step(sampler, z, keys):
    """z after a step of a sampler from λ = −3 to λ = −1, from 10 x̃ of a denoiser that is revealed there."""
    return 10 * samplers.sample(sampler, oracle(2.0, -1.0), keys, z, jnp.array([-3.0, -1.0]))


def test_the_first_step_of_a_multistep_sampler_is_that_of_its_form_of_order_one():
    z, keys = jnp.linspace(-2.0, 2.0, 6)[:, None], keys_of(6)
    for sampler in (dpmpp_2m(), unipc()):
        np.testing.assert_allclose(first_step(sampler, z, keys), first_step(ddim(), z, keys), rtol=1e-5)
    np.testing.assert_allclose(
        first_step(dpmpp_2m_sde(), z, keys), first_step(ancestral(0.0), z, keys), rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
def test_ddim_is_the_euler_method_in_flow_time():
    num_steps, logsnrs = 4, logsnr_grid(4, "cosine", -10.0, 10.0)
    with jax.enable_x64(True):
        mixture = GaussianMixture(MEANS, [0.2, 0.3, 0.25], [0.5, 0.3, 0.2])
        keys = keys_of(8)
        z = initial_noise(keys, (2,), jnp.float64)
        found = samplers.sample(ddim(), mixture.predict, keys, z, logsnrs)
        alpha, sigma = alpha_sigma(logsnrs)
        time = sigma / (alpha + sigma)
        flow = z / (alpha[0] + sigma[0])
        for i in range(num_steps):
            x, eps, _ = mixture.predict(flow * (alpha[i] + sigma[i]), logsnrs[i])
            flow = flow + (time[i + 1] - time[i]) * (eps - x) if i < num_steps - 1 else x
    np.testing.assert_allclose(found, flow, atol=1e-12)


def test_halving_the_step_halves_the_error_of_ddim():
    mean, std, bounds = 0.7, 0.4, (-12.0, 10.0)

    def spread(logsnr):
        """(α, √(α² s² + σ²)): on Gaussian data the flow keeps ξ = (z − α m) / √(α² s² + σ²)."""
        alpha, sigma = alpha_sigma(jnp.asarray(logsnr))
        return alpha, jnp.sqrt(alpha**2 * std**2 + sigma**2)

    with jax.enable_x64(True):
        gaussian = GaussianMixture([[mean]], [std], [1.0])
        z, keys = jnp.linspace(-2.0, 2.0, 8)[:, None], keys_of(8)
        (alpha, total), (alpha_end, total_end) = map(spread, bounds)
        xi = (z - alpha * mean) / total
        exact = mean + alpha_end * std**2 * xi / total_end  # E[x | z] at the end of the flow
        run = jax.jit(lambda logsnrs: samplers.sample(ddim(), gaussian.predict, keys, z, logsnrs))
        found = [run(logsnr_grid(num_steps, "cosine", *bounds)) for num_steps in (65, 129, 257)]
        errors = np.array([np.abs(x - exact).max() for x in found])
    assert errors[-1] > 1e-4
    np.testing.assert_allclose(errors[:-1] / errors[1:], 2, rtol=0.1)


CHURNED = heun(s_churn=4.0, s_min=0.05, s_max=20.0)
EVALUATING = [ancestral(0.3), ddim(), heun(), CHURNED, dpmpp_2m(), dpmpp_2m_sde(), unipc()]


@pytest.mark.parametrize("sampler", EVALUATING, ids=repr)
def test_the_evaluations_of_a_sampler_are_at_the_levels_that_it_states(sampler):
    calls = []

    def denoise(z, logsnr):
        jax.debug.callback(lambda level: calls.append(float(level)), logsnr[0], ordered=True)
        return Prediction(z, z)

    logsnrs = logsnr_grid(7)
    jax.block_until_ready(sample(sampler, denoise, keys_of(2), logsnrs))
    jax.effects_barrier()
    np.testing.assert_allclose(calls, evaluated_levels(sampler, logsnrs), rtol=1e-5)
    assert len(calls) == sampler.evaluations(7) == (13 if isinstance(sampler, heun) else 7)


def test_heun_evaluates_both_ends_of_each_step_and_churn_never_exceeds_the_first_level():
    np.testing.assert_array_equal(evaluated_levels(heun(), np.arange(4.0)), [0, 1, 1, 2, 2, 3, 3])
    logsnrs = np.array([-6.0, -5.9, 0.0, 6.0])
    gamma = 0.1  # s_churn / T
    churned = evaluated_levels(heun(s_churn=0.4, s_min=0.06), logsnrs)
    np.testing.assert_allclose(churned, [-6, -5.9, -6, 0, -2 * np.log1p(gamma), 6, 6])
    limited = evaluated_levels(heun(s_churn=99.0), logsnrs)
    np.testing.assert_allclose(limited[4:], [-2 * np.log(np.sqrt(2)), 6, 6 - 2 * np.log(np.sqrt(2))])


@pytest.mark.parametrize("sampler", [heun(), unipc()], ids=repr)
def test_the_network_evaluations_are_those_of_the_rule_at_the_evaluated_levels(sampler):
    branches, logsnrs, rule = [], logsnr_grid(12, "uniform", -6.0, 6.0), interval(low=0.3, high=5.0)

    def predict(z, logsnr, label):
        jax.debug.callback(lambda: branches.append(len(z) // 2))
        return MIXTURE.predict(z, logsnr, label)

    denoise = rule(predict, jnp.arange(2), jnp.full(2, 3), 1.0)
    jax.block_until_ready(samplers.sample(sampler, denoise, keys_of(2), jnp.ones((2, 2)), logsnrs))
    jax.effects_barrier()
    assert sum(branches) == evaluations(rule, evaluated_levels(sampler, logsnrs)).sum()
    assert set(branches) == {1, 2} and len(branches) == sampler.evaluations(12)


def test_a_sampler_that_does_not_state_the_levels_of_all_its_evaluations_is_named():
    class twice(ddim):
        def evaluations(self, num_steps):
            return 2 * num_steps

    with pytest.raises(UsageError, match=r"states 12 evaluations for 6 levels, and the λ of 6; need a method"):
        evaluated_levels(twice(), logsnr_grid(6))


@every_sampler
def test_the_last_step_adds_no_noise(sampler):
    found = sample(sampler, oracle(X), keys_of(8), logsnr_grid(4))
    np.testing.assert_allclose(found, np.tile(X, (8, 1)), rtol=1e-5)


@every_sampler
def test_the_noise_of_a_sample_depends_only_on_its_key(sampler):
    run = lambda keys: sample(sampler, MIXTURE.predict, keys, logsnr_grid(16, "cosine", -10.0, 10.0))
    keys = keys_of(64)
    full = run(keys)
    np.testing.assert_allclose(run(keys[:7]), full[:7], atol=1e-5)
    order = jax.random.permutation(jax.random.key(1), 64)
    np.testing.assert_allclose(run(keys[order]), full[order], atol=1e-5)


@every_sampler
@pytest.mark.slow
def test_samples_are_bounded_only_with_clipping(sampler):
    run = lambda clip: sample(sampler, WIDE.predict, keys_of(16), logsnr_grid(16, "uniform", -10.0, 10.0), clip=clip)
    assert jnp.abs(run(True)).max() <= 1
    assert jnp.all(jnp.abs(run(False)).max(axis=1) > 1)


@every_sampler
@pytest.mark.slow
def test_a_clipped_x_gives_the_same_step_as_the_same_x_predicted(sampler):
    found = [
        sample(sampler, oracle(x, 1.0), keys_of(8), np.array([-3.0, -1.0, 1.0]), clip=clip)
        for x, clip in ((5.0, True), (1.0, False))
    ]
    np.testing.assert_allclose(*found, rtol=1e-4)
