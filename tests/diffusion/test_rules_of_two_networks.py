"""Laws of rules that wrap autoguidance and perturbed-attention guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.guidance import (
    apg,
    autoguidance,
    bind_rule,
    cfg,
    compose,
    conditional,
    evaluations,
    interval,
    on_labels,
    pag,
    rescale,
    seg,
    table,
)
from cfgjax.diffusion.mixture import GaussianMixture

pytestmark = pytest.mark.slow

MIXTURE = GaussianMixture(np.array([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]]), np.array([0.4, 0.8, 0.6]), [0.5, 0.3, 0.2])
Z, LABEL = jax.random.normal(jax.random.key(0), (16, 2)), jnp.arange(16) % 3
NULL = jnp.full_like(LABEL, 3)
WEAK = jax.tree_util.Partial(lambda z, logsnr, cond: MIXTURE.predict(0.8 * z, logsnr, cond))
AUTO = autoguidance(WEAK)
W = 1.5


def predict(z, logsnr, cond):
    return MIXTURE.predict(z, logsnr, cond)


predict.perturbed = lambda layers, blur: lambda z, logsnr, cond: MIXTURE.predict(0.7 * z, logsnr, cond)


def at(rule, logsnr=0.0, w=W):
    """The guided prediction of a rule at one level."""

    def run(rule, logsnr, w):
        bound = bind_rule(rule, predict, LABEL, NULL, w)
        return bound(Z, jnp.full(16, logsnr), bound.init(Z))[0]

    return jax.jit(run)(rule, logsnr, w)


close = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), a, b)


@pytest.mark.parametrize("rule", [AUTO, pag(), seg(blur=1.0)], ids=repr)
def test_an_interval_switches_the_weak_network_on_and_off(rule):
    inside = interval(rule, low=-1.0, high=1.0, unit="logsnr")
    close(at(inside, 0.0), at(rule, 0.0))
    close(at(inside, 3.0), at(conditional(), 3.0))
    np.testing.assert_array_equal(evaluations(inside, np.array([-3.0, 0.0, 3.0])), [1, 2, 1])


def test_an_interval_leaves_a_scale_as_it_is():
    rule = interval(pag(cfg(), scale=2.0), low=-1.0, high=1.0, unit="logsnr")
    close(at(rule, 0.0), at(pag(cfg(), scale=2.0), 0.0))
    close(at(rule, 3.0), at(pag(scale=2.0), 3.0))
    np.testing.assert_array_equal(evaluations(rule, np.array([0.0, 3.0])), [3, 2])
    inner = pag(interval(cfg(), low=-1.0, high=1.0, unit="logsnr"), scale=2.0)
    close(at(inner, 3.0), at(pag(scale=2.0), 3.0))
    close(at(inner, 0.0), at(pag(cfg(), scale=2.0), 0.0))


@pytest.mark.parametrize("rule", [AUTO, pag(), pag(cfg(), scale=0.5), pag(AUTO, scale=0.5)], ids=repr)
def test_projected_guidance_with_nothing_projected_is_the_rule_itself(rule):
    close(at(apg(rule, eta=1.0, beta=0.0, r=np.inf)), at(rule))
    assert np.abs(at(apg(rule, eta=0.0)).x - at(rule).x).max() > 1e-3


def test_a_table_of_factors_scales_the_weight():
    close(at(table(AUTO, logsnr=(-5.0, 5.0), factor=(0.5, 0.5))), at(AUTO, w=0.5 * W))
    close(at(table(pag(), logsnr=(-5.0, 5.0), factor=(2.0, 2.0))), at(pag(), w=2 * W))


def test_perturbed_attention_is_added_to_a_rescaled_rule_and_may_be_rescaled_itself():
    close(at(rescale(pag(cfg(), scale=0.5), phi=0.0)), at(pag(cfg(), scale=0.5)))
    both = at(pag(rescale(cfg(), phi=0.5), scale=0.5))
    expected = at(rescale(cfg(), phi=0.5)).x + 0.5 * (at(conditional()).x - MIXTURE.predict(0.7 * Z, 0.0, LABEL).x)
    close(both.x, expected)
    with pytest.raises(UsageError, match="rescale has no effect inside apg"):
        at(apg(pag(rescale(cfg()), scale=0.5)))


def test_perturbed_attention_is_not_added_to_several_labels():
    rule = on_labels(pag(compose(labels=(1,)), scale=1.0), lambda label: jnp.full_like(LABEL, label))
    with pytest.raises(UsageError, match="pag cannot be added to compose"):
        at(rule)
