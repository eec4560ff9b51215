"""Laws of the rules that combine the two predictions in another way than classifier-free guidance."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussians import NULL, W, bind, keys, predict

from cfgjax.diffusion.guidance import (
    RULES,
    apg,
    at_zero,
    cfg,
    cfg_plus_plus,
    cfg_zero,
    channels,
    classifier,
    compose,
    conditional,
    interval,
    keeps_pair,
    mixed,
    negative,
    parts,
    ramp,
    rescale,
    table,
    threshold,
)
from cfgjax.diffusion.guidance.denoiser import with_memory
from cfgjax.diffusion.guidance.threshold import row_percentile
from cfgjax.diffusion.mixture import GaussianMixture
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import alpha_sigma, diffuse
from cfgjax.diffusion.samplers import ddim, ddim_step, sample
from cfgjax.diffusion.specs import parse

MIXTURE = GaussianMixture(np.array([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]]), np.array([0.4, 0.8, 0.6]), [0.5, 0.3, 0.2])
Z = jax.random.normal(jax.random.key(0), (6, 2, 2, 3))
LOGSNR = 0.5
GRID = np.linspace(-6, 6, 9).astype(np.float32)


def two_models(z, logsnr, label):
    """A predictor whose two branches are not along each other, with a learned variance."""
    shift = jnp.where(label == NULL, -0.7, 0.4)[:, None, None, None] * jnp.linspace(-1, 2, 3)
    x = predict(z, logsnr, label).x + shift
    alpha, sigma = (scale[:, None, None, None] for scale in alpha_sigma(logsnr))
    variance = jnp.where(label == NULL, 0.0, 1.0)[:, None, None, None] * jnp.ones_like(z)
    return Prediction(x, (z - alpha * x) / sigma, variance)


def branches(rule, logsnr=LOGSNR, w=W, z=Z, predict=two_models, memory=None, grid=GRID):
    """(the branches of a rule at one level, its memory)."""
    denoise = with_memory(bind(rule, w, len(z), grid=grid, predict=predict))
    memory = denoise.init(z) if memory is None else memory
    return denoise.branches(z, jnp.full(len(z), logsnr, z.dtype), memory)


def guided(rule, *args, **options):
    return branches(rule, *args, **options)[0].guided


def close(a, b, **tolerances):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **({"rtol": 1e-5, "atol": 1e-5} | tolerances)), a, b)


same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
flat = lambda x: np.asarray(x, np.float64).reshape(len(x), -1)

EXAMPLES = (
    interval(low=0.3, high=5.0),
    interval(low=2, high=6, unit="step"),
    ramp(start=0.5),
    table(logsnr=(-1.0, 0.0, 1.0), factor=(0.5, 2.0, 1.0), kind="linear"),
    rescale(phi=0.7),
    threshold(percentile=90.0),
    apg(eta=0.3, beta=-0.5, r=2.0),
    cfg_plus_plus(),
    cfg_zero(zero_steps=0),
    channels(n=2),
    compose(labels=(1, 2), scales=(0.5, -0.25)),
    negative(label=2),
    rescale(interval(apg(eta=0.2), low=0.3, high=5.0), phi=0.3),
    apg(ramp(interval(negative(label=1), low=0.3, high=5.0))),
    threshold(cfg_plus_plus(), percentile=95.0),
    cfg_zero(compose(labels=(1,)), zero_steps=2),
)
every_rule = pytest.mark.parametrize("rule", EXAMPLES, ids=repr)


# All rules


@every_rule
def test_the_text_of_a_rule_is_read_back(rule):
    assert parse(repr(rule), RULES) == rule


@pytest.mark.slow
@every_rule
def test_the_numbers_of_a_rule_are_traced(rule):
    """Every number can be a traced one: changing it compiles nothing."""
    traces = []

    @jax.jit
    def run(numbers):
        traces.append(1)
        return guided(jax.tree.unflatten(jax.tree.structure(rule), numbers), z=Z[:2])

    numbers = jax.tree.leaves(rule)
    run(numbers)
    run([number * 1 if isinstance(number, int) else number * 0.9 for number in numbers])
    assert len(traces) == 1


@pytest.mark.slow
@every_rule
def test_weights_are_per_sample(rule):
    weights = jnp.array([-1.0, 0.0, 0.5, 1.0, 3.0, -2.0])
    together = guided(rule, w=weights)
    for i in (0, 2, 4):
        np.testing.assert_allclose(together.x[i], guided(rule, w=weights[i]).x[i], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@every_rule
def test_predictions_add_up_to_z_and_have_the_variance_of_the_conditional_branch(rule):
    found = guided(rule)
    np.testing.assert_array_equal(found.variance, 1)
    if not any(isinstance(part, cfg_plus_plus) for part in (rule, getattr(rule, "rule", None))):
        close(diffuse(found.x, found.eps, LOGSNR), Z, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [rule for rule in EXAMPLES if all(map(keeps_pair, parts(rule)))], ids=repr)
@pytest.mark.parametrize("w", [-1.0, 3.0])
def test_a_rule_that_keeps_the_pair_extrapolates_from_it_by_the_weight_that_it_reports(rule, w):
    found, _ = branches(rule, w=w)
    close(found.guided, mixed(found.strong, found.weak, found.w))


@pytest.mark.slow
@every_rule
def test_at_weight_zero_a_rule_is_its_rule_without_the_null_branch(rule):
    zero = at_zero(rule)
    if zero != rule:
        found = with_memory(bind(zero, 0.0, len(Z), grid=GRID, predict=two_models))
        close(guided(rule, w=0.0), found(Z, jnp.full(len(Z), LOGSNR), found.init(Z))[0])
    else:
        assert any(isinstance(part, cfg_plus_plus | cfg_zero | compose) for part in (rule, getattr(rule, "rule", None)))


@pytest.mark.slow
@every_rule
def test_the_null_condition_is_the_one_that_is_given(rule):
    """No rule knows the null label: only labels that are given reach the network."""
    seen = set()
    watch = lambda z, logsnr, label: seen.update(map(int, label)) or two_models(z, logsnr, label)
    with jax.disable_jit():
        guided(rule, predict=watch, z=Z[:1], w=jnp.ones(1))
    others = {int(n) for part in (rule, getattr(rule, "rule", None)) for n in np.ravel(getattr(part, "labels", ()))}
    assert seen - others - {0, 1, 2} <= {NULL}


@pytest.mark.parametrize(
    "rule",
    [
        interval(), ramp(start=1, end=1), table(), rescale(phi=0), threshold(percentile=100), apg(eta=1),
        channels(n=3), compose(), compose(labels=(1,), scales=(0,)), negative(), negative(label=NULL),
    ],
    ids=repr,
)  # fmt: skip
def test_at_its_neutral_value_a_rule_is_classifier_free_guidance(rule):
    z = 0.1 * Z if isinstance(rule, threshold) else Z
    for w in (-1.0, 0.0, 1.5):
        found, expected = (branches(each, w=w, z=z, predict=SMALL)[0] for each in (rule, cfg()))
        close(found[:3], expected[:3], rtol=1e-6, atol=1e-6)


SMALL = lambda z, logsnr, label: jax.tree.map(lambda a: 0.1 * a, two_models(z, logsnr, label))


# Rescaling, thresholds, channels


def test_rescaled_predictions_have_the_standard_deviation_of_the_conditional_one():
    found, _ = branches(rescale(phi=1), w=4.0)
    close(flat(found.guided.x).std(axis=1), flat(found.strong.x).std(axis=1))
    half = guided(rescale(phi=0.5), w=4.0)
    close(half.x, (found.guided.x + guided(cfg(), w=4.0).x) / 2)


def test_of_branches_along_each_other_rescaling_leaves_the_conditional_one():
    found, _ = branches(rescale(phi=1), w=0.5, predict=predict)
    close(found.guided, found.strong)
    one = branches(rescale(phi=1), z=Z[:, :1, :1, :1], predict=predict)[0].guided
    assert np.isfinite(one.x).all()  # one number has no standard deviation


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("percentile", [1e-3, 37, 50, 99.5, 100])
def test_the_percentile_of_a_row_is_that_of_its_sorted_values(percentile, dtype):
    rng = np.random.default_rng(0)
    rows = np.abs(rng.standard_normal((6, 301)))
    rows[1] = np.round(rows[1])  # many are equal
    rows[2], rows[3], rows[4, :200] = 0, 1e30 * rows[3], 1e-42
    with jax.enable_x64(dtype == np.float64):
        found = jax.jit(row_percentile)(jnp.asarray(rows, dtype), jnp.asarray(percentile, dtype))
        assert found.dtype == dtype
    np.testing.assert_allclose(found, np.percentile(rows.astype(dtype), percentile, axis=1), rtol=3e-5, atol=1e-37)


def test_the_percentile_of_a_row_with_a_value_that_is_no_number_is_of_the_others_or_none():
    rows = jnp.array([[1.0, 2, jnp.nan], [1, 2, jnp.inf]])
    assert np.array_equal(row_percentile(rows, 50.0), [2, 2])
    assert np.isnan(row_percentile(rows, 100.0)[0])


def test_a_threshold_is_a_percentile_of_each_sample():
    plain = guided(cfg(), w=4.0)
    found = guided(threshold(percentile=80), w=4.0)
    for x, x_found in zip(flat(plain.x), flat(found.x), strict=True):
        bound = max(1, np.percentile(np.abs(x), 80))
        close(x_found, np.clip(x, -bound, bound) / bound)
    assert np.abs(found.x).max() <= 1 < np.abs(plain.x).max()


def test_a_threshold_hides_no_overflow():
    broken = lambda z, logsnr, label: two_models(z.at[0, 0, 0, 0].set(jnp.inf), logsnr, label)
    assert np.isnan(guided(threshold(), predict=broken).x[0]).any()


def test_the_other_channels_are_conditional():
    found, _ = branches(channels(n=2))
    same(found.guided.x[..., :2], guided(cfg()).x[..., :2])
    same(found.guided.eps[..., 2:], found.strong.eps[..., 2:])
    assert np.abs(found.guided.x - found.strong.x)[..., :2].min() > 1e-3


# Adaptive projected guidance


def apg_in_x(x, weak, w, *, eta, beta, r, average):
    """x̃ and Δ̄ of APG for one sample, float64."""
    average = (x - weak) + beta * average
    bounded = average * min(1, r / np.linalg.norm(average))
    parallel = (bounded @ x) / (x @ x) * x
    return x + w * (bounded - parallel + eta * parallel), average


@pytest.mark.parametrize("options", [dict(eta=0.3, beta=-0.5, r=0.8), dict(eta=-1.0, beta=0.7, r=100.0)], ids=str)
def test_apg_follows_its_definition_over_several_levels(options):
    memory, average = None, np.zeros((6, 12))
    for logsnr in (-2.0, 0.0, 3.0):
        found, memory = branches(apg(**options), logsnr, memory=memory)
        x, weak = flat(found.strong.x), flat(found.weak.x)
        expected = [apg_in_x(*rows, W, **options, average=a) for *rows, a in zip(x, weak, average, strict=True)]
        average = np.stack([a for _, a in expected])
        close(flat(found.guided.x), np.stack([a for a, _ in expected]), atol=2e-5)
        close(diffuse(found.guided.x, found.guided.eps, logsnr), Z, atol=5e-5)
        assert memory[1].dtype == jnp.float32


def test_apg_projects_in_x_with_the_conditional_prediction_as_base():
    # projected in ε, or added to x̂_u, the change would not be at right angles to x̂_c
    found, _ = branches(apg())
    x, change = flat(found.strong.x), flat(found.guided.x - found.strong.x)
    assert np.abs(change).max() > 0.1
    np.testing.assert_allclose(np.sum(x * change, axis=1) / np.linalg.norm(x, axis=1), 0, atol=1e-5)
    eps_change = flat(found.guided.eps - found.strong.eps)
    assert np.abs(np.sum(flat(found.strong.eps) * eps_change, axis=1)).max() > 0.1


def test_in_one_dimension_apg_without_its_parallel_part_is_the_conditional_model():
    found, _ = branches(apg(), z=Z[:, :1, :1, :1], predict=predict)
    close(found.guided, found.strong)


@pytest.mark.slow
@pytest.mark.parametrize("logsnr", [-20.0, 20.0])
def test_apg_is_accurate_at_both_ends(logsnr):
    with jax.enable_x64(True):
        exact = guided(apg(eta=1), logsnr, z=jnp.asarray(Z, jnp.float64), predict=predict).eps
    np.testing.assert_allclose(guided(apg(eta=1), logsnr, predict=predict).eps, exact, rtol=2e-5, atol=1e-6)


# CFG++


def test_cfg_plus_plus_renoises_with_the_unconditional_prediction():
    found, _ = branches(cfg_plus_plus(), w=-0.4)
    same(found.guided.eps, found.weak.eps)  # not with ε̃
    close(found.guided.x, found.weak.x + 0.6 * (found.strong.x - found.weak.x))


@pytest.mark.slow
def test_cfg_plus_plus_is_ddim_with_a_scale_that_depends_on_the_step():
    g = 0.6
    with jax.enable_x64(True):
        levels = jnp.linspace(-6.0, 6.0, 13)
        scales = jnp.append(g / -jnp.expm1(-jnp.diff(levels) / 2), g)  # the last step is x̃ itself
        mixture, label = GaussianMixture(*(np.asarray(a, float) for a in MIXTURE_NUMBERS)), jnp.zeros(4, int)
        z = jax.random.normal(jax.random.key(3), (4, 2), jnp.float64)

        @jax.jit
        def draw(rule, w):
            denoise = rule(mixture.predict, label, jnp.full_like(label, 3), w)
            return sample(ddim(), denoise, keys(4), z, levels, save=lambda evaluation: evaluation.z)

        found = draw(cfg_plus_plus(), g - 1)
        expected = draw(table(logsnr=tuple(levels.tolist()), factor=tuple((scales - 1).tolist())), 1.0)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-14), found, expected)


MIXTURE_NUMBERS = (MIXTURE.means, MIXTURE.stds, MIXTURE.weights)


@pytest.mark.slow
def test_one_step_of_cfg_plus_plus_is_that_of_ddim_to_rounding():
    g, logsnr, after = 0.6, 0.4, 1.1
    scale = g / -np.expm1(-(after - logsnr) / 2)
    with jax.enable_x64(True):
        z = jnp.linspace(-2.0, 2.0, 9)[:, None]
        plus = guided(cfg_plus_plus(), logsnr, w=g - 1, z=z, predict=predict)
        plain = guided(cfg(), logsnr, w=scale - 1, z=z, predict=predict)
        steps = [ddim_step(found.x, found.eps, logsnr, after) for found in (plus, plain)]
        np.testing.assert_allclose(*steps, atol=5e-16)


# CFG-Zero*


def test_the_scale_of_cfg_zero_is_that_of_the_flow_velocities():
    found, _ = branches(cfg_zero(zero_steps=0))
    strong, weak = (flat(branch.eps) - flat(branch.x) for branch in found[:2])
    scale = np.sum(strong * weak, axis=1, keepdims=True) / np.sum(weak**2, axis=1, keepdims=True)
    velocity = (1 + W) * strong - W * scale * weak
    close(flat(found.guided.eps) - flat(found.guided.x), velocity, rtol=1e-4)


@pytest.mark.parametrize("w", [-3.0, 0.5, 6.0])
def test_of_velocities_along_each_other_cfg_zero_leaves_the_conditional_one(w):
    length = lambda label: jnp.where(label == NULL, 2.5, 1.0)[:, None, None, None]
    along = lambda z, logsnr, label: velocity(length(label) * jnp.cos(3 * z), z, logsnr)
    found, _ = branches(cfg_zero(zero_steps=0), w=w, predict=along)
    close(found.guided[:2], found.strong[:2], atol=3e-5)


def velocity(u, z, logsnr):
    alpha, sigma = (scale[:, None, None, None] for scale in alpha_sigma(logsnr))
    time, flow = sigma / (alpha + sigma), z / (alpha + sigma)
    return Prediction(flow - time * u, flow + (1 - time) * u)


def test_in_its_first_steps_cfg_zero_does_not_move_the_flow():
    rule, z = cfg_zero(zero_steps=3), Z[:, 0, 0]
    predict = lambda z, logsnr, label: MIXTURE3.predict(z, logsnr, jnp.minimum(label, 3))
    denoise = bind(rule, W, len(z), grid=GRID, predict=predict)
    draw = jax.jit(lambda z: sample(ddim(), denoise, keys(len(z)), z, GRID, save=lambda evaluation: evaluation.z))
    _, seen = draw(z)
    alpha, sigma = alpha_sigma(GRID[:, None, None])
    flow = seen / (alpha + sigma)
    for i in range(3):  # K = 3 steps leave z_f as it was at the beginning; the fourth does not
        close(flow[i + 1], flow[0])
    assert np.abs(flow[4] - flow[3]).max() > 1e-2


MIXTURE3 = GaussianMixture(np.eye(3), np.array([0.5, 0.4, 0.6]), [0.2, 0.3, 0.5])


# Composition and negative labels


def other_labels(z, logsnr, label):
    """Another model for each label."""
    shift = jnp.sin(1.7 * label + 0.3)[:, None, None, None]
    x = predict(z, logsnr, label).x + shift * jnp.linspace(-1, 2, 3)
    alpha, sigma = (scale[:, None, None, None] for scale in alpha_sigma(logsnr))
    return Prediction(x, (z - alpha * x) / sigma)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("labels", "scales"),
    [((3, 5), (0.5, -0.25)), (np.stack([np.arange(6), 5 - np.arange(6)], 1), np.linspace(-1, 1, 12).reshape(6, 2))],
    ids=["shared", "per sample"],
)
def test_composition_adds_what_every_label_adds_to_the_null_label(labels, scales):
    at = lambda label: other_labels(Z, jnp.full(6, LOGSNR), jnp.broadcast_to(jnp.asarray(label), 6)).eps
    null = at(NULL)
    expected = null + (1 + W) * (at(0) - null)
    for j in range(2):
        scale, label = np.broadcast_to(scales, (6, 2))[:, j], np.broadcast_to(labels, (6, 2))[:, j]
        expected += (1 + W) * jnp.asarray(scale)[:, None, None, None] * (at(label) - null)
    close(guided(compose(labels=labels, scales=scales), predict=other_labels).eps, expected)


def test_composition_with_the_own_label_is_a_larger_scale():
    both = guided(compose(labels=(0,), scales=(0.5,)), predict=other_labels)
    close(both, guided(cfg(), w=(1 + W) * 1.5 - 1, predict=other_labels))


def test_all_labels_of_a_composition_are_one_call():
    calls = []
    guided(compose(labels=(3, 5)), predict=lambda z, *rest: calls.append(len(z)) or other_labels(z, *rest))
    assert calls == [4 * 6]


def test_a_negative_label_takes_the_place_of_the_null_label():
    at = lambda label: other_labels(Z, jnp.full(6, LOGSNR), jnp.full(6, label)).eps
    close(guided(negative(label=3), predict=other_labels).eps, at(3) + (1 + W) * (at(0) - at(3)))
    each = guided(negative(label=np.arange(6)), predict=other_labels)
    for i in range(6):
        one = guided(negative(label=i), predict=other_labels)
        close(each.eps[i], one.eps[i])
    assert not negative(label=3).uses_null and negative().uses_null


# Which rules can be inside which


GUIDE = jax.tree_util.Partial(lambda z, logsnr, cond: -jnp.sum(z**2, axis=(1, 2, 3)))


@pytest.mark.parametrize("outer", [apg, cfg_zero, cfg_plus_plus])
@pytest.mark.parametrize(
    "inner", [rescale(), threshold(), apg(), channels(), classifier(guide=GUIDE), interval(rescale())]
)
def test_a_rule_that_would_have_no_effect_inside_another_one_is_refused(outer, inner):
    rule = dataclasses.replace(outer(), **({"zero_steps": 0} if outer is cfg_zero else {}), rule=inner)
    said = rf"has no effect inside {outer.__name__}, which combines .* put it outside"
    with pytest.raises(ValueError, match=said) as e:
        guided(rule)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("outer", [apg, rescale, cfg_plus_plus, channels, interval])
def test_a_rule_without_a_weak_prediction_is_refused_where_one_is_needed(outer):
    with pytest.raises(ValueError, match=rf"{outer.__name__} wraps conditional\(\), which has no weak prediction"):
        guided(outer(conditional()))


@pytest.mark.slow
def test_the_classifier_is_added_to_any_rule():
    plain = lambda rule: guided(rule).eps
    for rule in (interval(low=0.3, high=5), rescale(), apg(), compose(labels=(1,))):
        _, sigma = alpha_sigma(jnp.float32(LOGSNR))
        close(guided(classifier(rule, 0.5, guide=GUIDE)).eps, plain(rule) + 0.5 * sigma * 2 * Z)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: rescale(phi=1.5), "phi is 1.5; need a number in \\[0, 1\\]"),
        (lambda: threshold(percentile=101), r"percentile is 101; need a number in \(0, 100\]"),
        (lambda: threshold(percentile=0), r"percentile is 0; need a number in \(0, 100\]"),
        (lambda: apg(r=-1), "r is -1"),
        (lambda: apg(eta=float("nan")), "eta is nan"),
        (lambda: channels(n=-1), "n is -1"),
        (lambda: cfg_zero(zero_steps=-1), "zero_steps is -1"),
        (lambda: compose(labels=(1, 2), scales=(1,)), "2 labels and 1 scales"),
        (lambda: compose(labels=(1.5,)), "labels is \\(1.5,\\); need an integer"),
        (lambda: compose(labels=(1,), scales=("a",)), "scales is 'a'"),
        (lambda: negative(label="cat"), "label is 'cat'; need an integer"),
        (lambda: negative(label=True), "label is True"),
        (lambda: cfg_zero()(predict, None, None, 0.0), "is given in steps; take `on_grid"),
        (lambda: negative(label=3)(predict, None, None, 0.0), "states labels; take `on_labels"),
        (lambda: compose(labels=(3,))(predict, None, None, 0.0), "states labels; take `on_labels"),
    ],
)
def test_bad_arguments_are_one_line_errors(make, said):
    with pytest.raises(ValueError, match=said) as error:
        make()
    assert "\n" not in str(error.value)
