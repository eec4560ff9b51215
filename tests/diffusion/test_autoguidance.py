"""Laws of autoguidance, on Gaussians with their closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.base.errors import UsageError
from cfgjax.diffusion import samplers
from cfgjax.diffusion.guidance import autoguidance, bind_pair, cfg, classifier, conditional, evaluations, with_memory
from cfgjax.diffusion.mixture import GaussianMixture
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.samplers import ancestral, ddim, initial_noise
from cfgjax.diffusion.schedules import logsnr_grid
from cfgjax.diffusion.specs import parse

MIXTURE = GaussianMixture(np.array([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]]), np.array([0.4, 0.8, 0.6]), [0.5, 0.3, 0.2])
Z, LOGSNR, LABEL = jax.random.normal(jax.random.key(0), (16, 2)), jnp.linspace(-4.0, 4.0, 16), jnp.arange(16) % 3
WEIGHTS = jnp.linspace(-2.0, 5.0, 16)


def scaled(params, z, logsnr, cond):
    """A network with one parameter: the mixture's prediction of z times params."""
    return MIXTURE.predict(params * z, logsnr, cond)


weak_of = lambda factor: jax.tree_util.Partial(scaled, jnp.float32(factor))
strong = lambda z, logsnr, cond: scaled(jnp.float32(1.0), z, logsnr, cond)
run = jax.jit(lambda rule, w: rule(strong, LABEL, None, w)(Z, LOGSNR))


@pytest.mark.parametrize("w", [-1.0, 0.5, 4.0, WEIGHTS], ids=str)
def test_a_weak_network_that_equals_the_strong_one_has_no_effect_bit_for_bit(w):
    jax.tree.map(np.testing.assert_array_equal, run(autoguidance(weak_of(1.0)), w), run(conditional(), 0.0))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [ancestral(0.3), ddim()], ids=repr)
def test_complete_runs_with_an_equal_weak_network_are_equal_bit_for_bit(sampler):
    keys, logsnrs = jax.random.split(jax.random.key(0), 16), logsnr_grid(8, "cosine", -10.0, 10.0)
    drawn = jax.jit(
        lambda rule, w: samplers.sample(
            sampler, rule(strong, LABEL, None, w), keys, initial_noise(keys, (2,)), logsnrs, clip=True
        )
    )
    first = drawn(autoguidance(weak_of(1.0)), 0.0)
    for w in (1.0, 4.0):
        np.testing.assert_array_equal(drawn(autoguidance(weak_of(1.0)), w), first)


def test_zero_weight_is_the_strong_network_and_minus_one_the_weak_one():
    rule = autoguidance(weak_of(0.8))
    assert rule.at_zero == conditional()
    jax.tree.map(np.testing.assert_array_equal, run(rule, 0.0), run(conditional(), 0.0))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, run(rule, -1.0), scaled(0.8, Z, LOGSNR, LABEL))


@pytest.mark.slow
def test_the_null_branch_as_the_weak_network_is_classifier_free_guidance():
    null = jnp.full_like(LABEL, 3)
    without = jax.tree_util.Partial(lambda z, logsnr, cond: strong(z, logsnr, null))
    free = cfg()(strong, LABEL, null, WEIGHTS)(Z, LOGSNR)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, run(autoguidance(without), WEIGHTS), free)


def test_both_networks_get_the_same_z_level_and_condition():
    calls = []

    def seen(z, logsnr, cond):
        calls.append((z, logsnr, cond))
        return Prediction(z, z)

    autoguidance(seen)(seen, LABEL, None, 1.0)(Z, 0.5)
    ours, weaks = calls
    jax.tree.map(np.testing.assert_array_equal, ours, weaks)
    assert ours[1].shape == (16,)


def test_the_final_standard_deviation_of_a_gaussian_is_the_closed_form():
    """s_c^{1+w} S^{−w}, the probability flow of two centred Gaussians, where S is the weak network's."""
    strong_std, weak_std, w = 0.5, 0.9, 1.5
    one = lambda std: GaussianMixture(np.zeros((1, 1)), np.full(1, std), [1.0]).predict
    with jax.enable_x64(True):
        weak = jax.tree_util.Partial(lambda z, logsnr, cond: one(weak_std)(z, logsnr))
        denoise = autoguidance(weak)(lambda z, logsnr, cond: one(strong_std)(z, logsnr), None, None, w)
        logsnrs = jnp.linspace(-14.0, 14.0, 4001)
        found = jax.jit(lambda z: samplers.sample(ddim(), denoise, jax.random.split(jax.random.key(0), 1), z, logsnrs))(
            jnp.ones((1, 1))
        )
        np.testing.assert_allclose(found[0, 0], strong_std ** (1 + w) * weak_std**-w, rtol=3e-3)  # order 1


def test_the_weak_parameters_are_arguments_of_the_program():
    traces = []

    @jax.jit
    def traced(rule, w):
        traces.append(None)
        return rule(strong, LABEL, None, w)(Z, LOGSNR).eps

    for factor, w in ((1.0, 1.0), (0.5, 2.0)):
        found = traced(autoguidance(weak_of(factor)), w)
        np.testing.assert_allclose(found, run(autoguidance(weak_of(factor)), w).eps, rtol=1e-5, atol=1e-5)
    assert len(traces) == 1


class half:
    """A rule that wraps another one and halves its difference."""

    def __init__(self, rule):
        self.rule = rule

    def __call__(self, predict, cond, null, w):
        inner = bind_pair(self, self.rule, predict, cond, null, w)

        def denoise(z, logsnr):
            found, _ = inner.branches(z, logsnr, ())
            return jax.tree.map(lambda s, k: s + 0.5 * found.w * (s - k), found.strong, found.weak)

        return denoise


def test_wrappers_get_the_strong_and_the_weak_prediction():
    found = half(autoguidance(weak_of(0.8)))(strong, LABEL, None, 3.0)(Z, LOGSNR)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, found, run(autoguidance(weak_of(0.8)), 1.5))
    guide = jax.tree_util.Partial(lambda z, logsnr, cond: jnp.sum(z, axis=1))
    pulled = classifier(autoguidance(weak_of(0.8)), 2.0, guide=guide)(strong, LABEL, None, 1.0)
    branches, _ = with_memory(pulled).branches(Z, LOGSNR, ())
    np.testing.assert_array_equal(branches.weak.eps, scaled(0.8, Z, LOGSNR, LABEL).eps)


def test_it_needs_no_null_label_and_costs_two_evaluations():
    assert not autoguidance().uses_null
    np.testing.assert_array_equal(evaluations(autoguidance(), np.zeros(3)), [2, 2, 2])
    assert parse("autoguidance()", {"autoguidance": autoguidance}) == autoguidance()
    with pytest.raises(UsageError, match="autoguidance takes no arguments"):
        parse("autoguidance(weak=1)", {"autoguidance": autoguidance})
