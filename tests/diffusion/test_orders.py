"""Samplers on the closed form of guidance: one dimension, p(x|c) = N(0, s_c²), p(x) = N(0, S²), every step is linear.

ε̃ = (1+w) ε_c − w ε_u. The probability flow is y = z/α ∝ (s_c² + ς²)^{(1+w)/2} (S² + ς²)^{−w/2}, ς = σ/α = e^{−λ/2}.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.diffusion.grids import edm
from cfgjax.diffusion.levels import Continuous
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import alpha_sigma
from cfgjax.diffusion.samplers import ancestral, ddim, dpmpp_2m, dpmpp_2m_sde, heun, sample, unipc
from cfgjax.diffusion.samplers.driver import Level, steps_between
from cfgjax.diffusion.samplers.optional_noise import optional_noise_tree
from cfgjax.diffusion.schedules import logsnr_grid

STD, STD_NULL, W = 0.5, 1.0, 1.5
ALWAYS = (-np.inf, np.inf)
KEYS = jax.random.split(jax.random.key(0), 1)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def guided(interval=ALWAYS, w=W):
    """The denoiser with weight w at λ in [interval) and 0 elsewhere."""

    def denoise(z, logsnr):
        logsnr = jnp.broadcast_to(logsnr, z.shape[:1])[:, None]
        alpha, sigma = alpha_sigma(logsnr)
        weight = jnp.where((logsnr >= interval[0]) & (logsnr < interval[1]), w, 0.0)
        of = lambda std: sigma * z / (alpha**2 * std**2 + sigma**2)
        eps = (1 + weight) * of(STD) - weight * of(STD_NULL)
        return Prediction((z - sigma * eps) / alpha, eps)

    denoise.shift = None
    return denoise


def exact(ends, interval=ALWAYS):
    """x̃ at λ = ends[1] on the probability flow from z = 1 at ends[0], with guidance within the interval."""
    inside = np.clip(interval, *ends)

    def growth(start, end, w):
        y = lambda logsnr: (STD**2 + np.exp(-logsnr)) ** ((1 + w) / 2) * (STD_NULL**2 + np.exp(-logsnr)) ** (-w / 2)
        return y(end) / y(start)

    y = growth(ends[0], inside[0], 0) * growth(*inside, W) * growth(inside[1], ends[1], 0)
    z = np.sqrt(1 + np.exp(-ends[0])) * y / np.sqrt(1 + np.exp(-ends[1]))
    return float(guided(interval)(jnp.full((1, 1), z), jnp.float64(ends[1])).x[0, 0])


@jax.jit
def run(sampler, logsnrs, interval=ALWAYS):
    return sample(sampler, guided(interval), KEYS, jnp.ones((1, 1)), logsnrs)[0, 0]


def measured_order(sampler, levels=(81, 161), interval_of=lambda logsnrs: ALWAYS):
    """The slope of log |error| over −log of the number of steps, λ ∈ [−8, 8]."""
    errors = []
    for num_steps in levels:
        logsnrs = np.linspace(-8.0, 8.0, num_steps)
        interval = interval_of(logsnrs)
        errors.append(abs(run(sampler, logsnrs, interval) - exact((-8.0, 8.0), interval)))
    return np.log(errors[0] / errors[1]) / np.log((levels[1] - 1) / (levels[0] - 1))


ORDERS = {ddim(): 1.0, dpmpp_2m(): 2.0, heun(): 2.0, unipc(): 3.0, dpmpp_2m_sde(eta=0): 2.0}
deterministic = pytest.mark.parametrize("sampler", ORDERS, ids=repr)


@deterministic
def test_the_order_of_a_sampler_is_the_papers(sampler):
    assert measured_order(sampler) == pytest.approx(ORDERS[sampler], abs=0.15)


def test_heun_that_reuses_the_first_evaluation_in_its_corrector_has_order_one():
    @optional_noise_tree
    class stale(heun):
        def step(self, denoise, z, state, level, noise):
            once = functools.lru_cache(lambda: denoise(z, level.logsnr))
            return super().step(lambda z, logsnr: once(), z, state, level, noise)

    assert measured_order(stale()) == pytest.approx(1.0, abs=0.15)


@deterministic
def test_deterministic_samplers_reach_the_standard_deviation_of_the_flow(sampler):
    start, end = -14.0, 14.0
    x = run(sampler, np.linspace(start, end, 1601))
    # z at the first level is N(0, 1), whose flow starts at variance α² s_c² + σ² ≈ 1
    assert x == pytest.approx(STD ** (1 + W) * STD_NULL**-W, rel=0.01 if ORDERS[sampler] == 1 else 1e-3)
    assert pytest.approx(0.17678, abs=1e-5) == STD ** (1 + W) * STD_NULL**-W


def edges_midway(logsnrs):
    """About (−2, 3], with both edges in the middle between two levels."""
    i, j = np.searchsorted(logsnrs, (-2.0, 3.0))
    return (logsnrs[i - 1] + logsnrs[i]) / 2, (logsnrs[j - 1] + logsnrs[j]) / 2


@pytest.mark.parametrize(
    ("sampler", "levels"),
    [
        (dpmpp_2m(), (97, 193)),
        (heun(), (97, 193)),
        (unipc(), (1537, 3073)),  # on coarser grids its error changes its sign
    ],
    ids=repr,
)
def test_multistep_samplers_and_heun_have_order_two_with_edges_midway_between_levels(sampler, levels):
    assert measured_order(sampler, levels, edges_midway) == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize("sampler", [ddim(), dpmpp_2m(), heun(), unipc()], ids=repr)
def test_samplers_have_order_one_with_edges_that_stay_where_they_are(sampler):
    edges = (-2 + 1e-6, 3 + 1e-6)  # just above a level of both grids, whatever their rounding
    assert measured_order(sampler, (1537, 3073), lambda logsnrs: edges) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("sampler", [ddim(), dpmpp_2m(), heun(), unipc()], ids=repr)
def test_a_grid_does_not_resolve_where_between_two_levels_the_edge_of_an_interval_lies(sampler):
    logsnrs = np.linspace(-8.0, 8.0, 385)
    i = np.searchsorted(logsnrs, -2.0)
    edges = np.linspace(logsnrs[i - 1] + 1e-9, logsnrs[i], 3)
    found = [run(sampler, logsnrs, (edge, np.inf)) for edge in edges]
    assert found[0] == found[1] == found[2]
    errors = np.abs(found - np.array([exact((-8.0, 8.0), (edge, np.inf)) for edge in edges]))
    if ORDERS[sampler] > 1:  # as if the edge lay midway
        assert errors[1] < 0.2 * errors[0] and errors[1] < 0.2 * errors[2]


def linear_maps(sampler, denoise, logsnrs):
    """Yields (M, n) of each step: the vector of z and the sampler's state becomes M times it plus n times N(0, 1)."""
    first = jnp.ones((1, 1))
    following = np.append(logsnrs[1:], logsnrs[-1] + 1)
    levels = steps_between(jnp.asarray(logsnrs), jnp.asarray(following), last=True)
    is_signal = lambda leaf: leaf.ndim == 2
    state = sampler.init(first)
    flat = lambda z, state: jnp.stack([z[0, 0], *(a[0, 0] for a in jax.tree.leaves(state) if is_signal(a))])

    @jax.jit
    def one(state, level):
        leaves, structure = jax.tree.flatten(state)

        def step(vector, noise):
            signals = iter(vector[1:])
            filled = [next(signals).reshape(1, 1) if is_signal(leaf) else leaf for leaf in leaves]
            arguments = vector[:1].reshape(1, 1), structure.unflatten(filled), level, noise.reshape(1, 1)
            z, after = sampler.step(denoise, *arguments)
            return flat(z, after), after

        vector, noise = flat(first, state), jnp.ones(())
        (by_vector, by_noise), after = jax.jacobian(step, argnums=(0, 1), has_aux=True)(vector, noise)
        return by_vector, by_noise, after

    for i in range(len(logsnrs) - 1):
        level = Level(*(leaf[i] for leaf in levels))
        by_vector, by_noise, state = one(state, level)
        yield np.asarray(by_vector), np.asarray(by_noise)


def standard_deviation(sampler, denoise, logsnrs):
    """The exact standard deviation of x̃ for z_1 ~ N(0, 1), from the recursion of the covariance of z and the state."""
    covariance = None
    for by_vector, by_noise in linear_maps(sampler, denoise, logsnrs):
        if covariance is None:
            covariance = np.zeros_like(by_vector)
            covariance[0, 0] = 1
        covariance = by_vector @ covariance @ by_vector.T + np.outer(by_noise, by_noise)
    return np.sqrt(covariance[0, 0]) * float(denoise(jnp.ones((1, 1)), jnp.float64(logsnrs[-1])).x[0, 0])


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "order"), [(ancestral(0.0), 1.0), (dpmpp_2m_sde(), 2.0)], ids=repr)
def test_the_variance_of_a_stochastic_sampler_converges_to_that_of_the_sde(sampler, order):
    # dv/dς = 4 a v − 2ς with ε̃ = a y; with g = (s_c² + ς²)^5 (S² + ς²)^−3, v(0) = g(0) ∫ 2ς/g dς = 85/1024
    found = [standard_deviation(sampler, guided(), np.linspace(-14.0, 14.0, t + 1)) for t in (200, 400)]
    errors = np.abs(np.array(found) - np.sqrt(85 / 1024))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)
    assert errors[1] < (0.01 if order == 1 else 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [heun(s_churn=40.0), dpmpp_2m_sde(0.5), dpmpp_2m_sde(), ddim(0.5)], ids=repr)
def test_stochastic_samplers_keep_the_variance_of_the_data_without_guidance(sampler):
    found = standard_deviation(sampler, guided(w=0.0), np.linspace(-14.0, 14.0, 400))
    assert found == pytest.approx(STD, rel=0.02)


@pytest.mark.parametrize("sampler", [dpmpp_2m(), unipc(), dpmpp_2m_sde()], ids=repr)
def test_multistep_samplers_do_not_extrapolate_over_the_long_steps_of_the_cosine_schedule(sampler):
    # the last of 16 steps is six times as long in λ as the one before
    if sampler.draws_noise:
        assert standard_deviation(sampler, guided(w=0.0), logsnr_grid(16)) == pytest.approx(STD, rel=0.05)
    else:
        assert run(sampler, logsnr_grid(16)) == pytest.approx(STD ** (1 + W), rel=0.05)


def test_heun_is_for_grids_with_short_steps_in_noise():
    error = lambda sampler, grid: abs(run(sampler, grid) - STD ** (1 + W))
    edms = edm()(Continuous(), 18)
    assert error(heun(), edms) < 0.6 * error(ddim(), edms)
    assert error(heun(), logsnr_grid(18)) > error(ddim(), logsnr_grid(18))
