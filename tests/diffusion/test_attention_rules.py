"""Laws of perturbed-attention guidance, with a predictor whose perturbed predictions are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.base.errors import UsageError
from cfgjax.diffusion import samplers
from cfgjax.diffusion.guidance import (
    RULES,
    autoguidance,
    bind_pair,
    cfg,
    classifier,
    conditional,
    evaluations,
    pag,
    seg,
    shifts_mean,
    uses_null,
    with_memory,
)
from cfgjax.diffusion.mixture import GaussianMixture
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.samplers import ancestral, initial_noise
from cfgjax.diffusion.schedules import logsnr_grid
from cfgjax.diffusion.specs import parse, spec

MIXTURE = GaussianMixture(np.array([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]]), np.array([0.4, 0.8, 0.6]), [0.5, 0.3, 0.2])
Z, LOGSNR, LABEL = jax.random.normal(jax.random.key(0), (16, 2)), jnp.linspace(-4.0, 4.0, 16), jnp.arange(16) % 3
NULL = jnp.full_like(LABEL, 3)
WEIGHTS = jnp.linspace(-2.0, 5.0, 16)
close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def shrunk(blur):
    """The prediction for z times a factor, 1 for no blur."""
    factor = 0.8 if blur is None else jnp.exp(-0.3 * jnp.minimum(blur, 10.0))
    return lambda z, logsnr, cond: MIXTURE.predict(z * jnp.reshape(factor, (-1, 1)), logsnr, cond)


def predict(z, logsnr, cond):
    return MIXTURE.predict(z, logsnr, cond)


predict.perturbed = lambda layers, blur: shrunk(blur)


@jax.jit
def branches(rule, w):
    bound = with_memory(rule(predict, LABEL, NULL, w))
    return bound.branches(Z, LOGSNR, bound.init(Z))[0]


run = lambda rule, w=0.0: branches(rule, w).guided
plain = jax.jit(lambda: predict(Z, LOGSNR, LABEL))
free = jax.jit(lambda w: cfg()(predict, LABEL, NULL, w)(Z, LOGSNR))


@pytest.mark.slow
@pytest.mark.parametrize("w", [0.0, 3.0, WEIGHTS], ids=str)
def test_no_blur_is_the_conditional_model_or_the_wrapped_rule_bit_for_bit(w):
    found = branches(seg(blur=0.0), w)
    jax.tree.map(np.testing.assert_array_equal, found.guided, found.strong)
    jax.tree.map(np.testing.assert_array_equal, found.weak, found.strong)
    jax.tree.map(close, found.guided, plain())
    jax.tree.map(close, run(seg(cfg(), scale=2.0, blur=0.0), w), free(w))


@pytest.mark.slow
@pytest.mark.parametrize("rule", [pag(), seg(), seg(blur=0.5)], ids=repr)
def test_alone_w_is_the_scale_and_guides_away_from_the_perturbed_network(rule):
    away = shrunk(rule.perturbation)(Z, LOGSNR, LABEL)
    expected = jax.tree.map(lambda s, k: s + WEIGHTS[:, None] * (s - k), plain(), away)
    jax.tree.map(close, run(rule, WEIGHTS), expected)
    jax.tree.map(close, run(rule, 0.0), plain())
    jax.tree.map(close, run(rule, -1.0), away)


def test_segs_branches_are_not_swapped():
    """The strong branch has the attention as it is, and a positive weight moves away from the blurred one."""
    found = branches(seg(blur=1.0), 2.0)
    jax.tree.map(close, found.strong, plain())
    blurred = shrunk(1.0)(Z, LOGSNR, LABEL)
    jax.tree.map(close, found.weak, blurred)
    moved = np.sum((found.guided.x - found.strong.x) * (found.strong.x - blurred.x), axis=1)
    assert moved.min() >= 0
    assert moved.max() > 0.01


def test_it_is_added_to_classifier_free_guidance():
    away = shrunk(None)(Z, LOGSNR, LABEL)
    expected = jax.tree.map(lambda g, s, k: g + 0.7 * (s - k), free(WEIGHTS), plain(), away)
    jax.tree.map(close, run(pag(cfg(), scale=0.7), WEIGHTS), expected)
    scales = np.linspace(0.0, 2.0, 16, dtype=np.float32)
    both = run(seg(cfg(), scale=scales, blur=1.0), 1.0)
    for i in (0, 7, 15):
        one = run(seg(cfg(), scale=float(scales[i]), blur=1.0), 1.0)
        close(both.eps[i], one.eps[i])


@pytest.mark.parametrize("w", [0.0, 1.5, WEIGHTS], ids=str)
def test_the_weak_prediction_accounts_for_both_differences(w):
    found = branches(pag(cfg(), scale=2.5), w)
    weight = jnp.reshape(jnp.broadcast_to(found.w, (16,)), (16, 1))
    for name in ("x", "eps"):
        strong, weak, guided = (getattr(p, name) for p in found[:3])
        np.testing.assert_allclose(strong + weight * (strong - weak), guided, rtol=1e-4, atol=1e-4)
    zero = branches(pag(cfg(), scale=1.0), -1.0)
    jax.tree.map(np.testing.assert_array_equal, zero.weak, zero.strong)


class halved:
    """A rule that wraps another one and takes half of its weight."""

    def __init__(self, rule):
        self.rule = rule

    def __call__(self, predict, cond, null, w):
        inner = bind_pair(self, self.rule, predict, cond, null, w)

        def denoise(z, logsnr):
            found, _ = inner.branches(z, logsnr, ())
            return jax.tree.map(lambda s, k: s + 0.5 * found.w * (s - k), found.strong, found.weak)

        return denoise


@pytest.mark.slow
def test_wrappers_see_all_of_the_guidance():
    found = halved(pag(cfg(), scale=2.0))(predict, LABEL, NULL, 1.0)(Z, LOGSNR)
    jax.tree.map(close, found, run(pag(cfg(), scale=1.0), 0.5))


@pytest.mark.slow
def test_other_rules_can_be_wrapped():
    weak = jax.tree_util.Partial(lambda z, logsnr, cond: shrunk(2.0)(z, logsnr, cond))
    away = shrunk(None)(Z, LOGSNR, LABEL)
    auto = jax.jit(lambda w: autoguidance(weak)(predict, LABEL, NULL, w)(Z, LOGSNR))(1.5)
    expected = jax.tree.map(lambda g, s, k: g + 0.5 * (s - k), auto, plain(), away)
    jax.tree.map(close, run(pag(autoguidance(weak), scale=0.5), 1.5), expected)
    guide = jax.tree_util.Partial(lambda z, logsnr, cond: jnp.sum(z, axis=1))
    pulled = classifier(conditional(), 2.0, guide=guide)
    base = pulled(predict, LABEL, NULL, 0.0)(Z, LOGSNR, ())[0]
    expected = jax.tree.map(lambda g, s, k: g + 0.5 * (s - k), base, plain(), away)
    jax.tree.map(close, run(pag(pulled, scale=0.5)), expected)
    assert shifts_mean(pag(classifier(form="z"), scale=1.0))


def test_attributes_follow_the_wrapped_rule():
    assert not uses_null(pag())
    assert uses_null(pag(cfg(), scale=1.0))
    assert pag().at_zero == conditional()
    assert pag(cfg(), scale=2.0).at_zero == pag(scale=2.0)
    np.testing.assert_array_equal(evaluations(pag(), np.zeros(2)), [2, 2])
    np.testing.assert_array_equal(evaluations(seg(cfg(), scale=1.0), np.zeros(2)), [3, 3])


@pytest.mark.parametrize(
    "text", ["pag()", "pag(cfg(), scale=2)", "seg(layers='all', blur=2.5)", "pag(layers=(8, 16))", "seg(scale=1)"]
)
def test_the_text_of_a_rule_is_the_rule(text):
    assert spec(parse(text, RULES)) == text
    assert parse("seg(blur=inf)", RULES) == seg()


def test_numbers_are_traced():
    traces = []

    @jax.jit
    def traced(rule, w):
        traces.append(None)
        return rule(predict, LABEL, NULL, w)(Z, LOGSNR, ())[0].eps

    for scale, blur, w in ((1.0, 0.5, 0.0), (2.0, np.inf, 1.0), (0.0, 0.0, -1.0)):
        found = traced(seg(cfg(), scale=scale, blur=blur), w)
        close(found, run(seg(cfg(), scale=scale, blur=blur), w).eps)
    assert len(traces) == 1


@pytest.mark.slow
def test_complete_runs_are_finite_and_differ_from_the_conditional_model():
    keys, logsnrs = jax.random.split(jax.random.key(0), 16), logsnr_grid(8, "cosine", -10.0, 10.0)
    draw = jax.jit(
        lambda rule, w: samplers.sample(
            ancestral(0.3), rule(predict, LABEL, NULL, w), keys, initial_noise(keys, (2,)), logsnrs
        )
    )
    found, none = draw(pag(), 1.0), draw(pag(), 0.0)
    assert np.isfinite(found).all()
    assert np.abs(found - none).max() > 0.01


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pag(cfg()), r"scale is not given: w is the weight of cfg\(\)"),
        (lambda: seg(blur=-1), "blur is -1; need a number in"),
        (lambda: seg(blur="wide"), "blur is 'wide'"),
        (lambda: pag(layers="top"), 'layers is \'top\'; need "middle", "all", or heights'),
        (lambda: pag(layers=0), "layers is 0; need"),
        (lambda: pag(layers=()), "layers is "),
        (lambda: pag(layers=(8, "all")), "layers is "),
        (lambda: parse("pag(cfg())", RULES), "scale is not given"),
        (lambda: parse("pag(blur=1)", RULES), "pag takes no 'blur'"),
        (lambda: pag()(MIXTURE.predict, LABEL, NULL, 1.0), "needs a network with self-attention"),
    ],
)
def test_bad_arguments_are_one_line_errors(make, message):
    with pytest.raises(UsageError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_learned_variance_is_that_of_the_strong_branch():
    given = lambda z, logsnr, cond: Prediction(z, z, jnp.full_like(z, 0.25))
    given.perturbed = lambda layers, blur: lambda z, logsnr, cond: Prediction(z, z, jnp.full_like(z, 0.75))
    found = pag(cfg(), scale=1.0)(given, LABEL, NULL, 1.0)(Z, LOGSNR, ())[0]
    np.testing.assert_array_equal(found.variance, jnp.full_like(Z, 0.25))
