"""Laws of the rules that change the weight with the noise level: intervals, ramps and tables."""

import gaussians
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussians import HI, LO, STD, W, bind, final_std, keys, predict, solution

from cfgjax.diffusion.guidance import (
    Denoiser,
    apg,
    cfg,
    cfg_plus_plus,
    cfg_zero,
    classifier,
    conditional,
    evaluations,
    interval,
    on_grid,
    pag,
    ramp,
    rescale,
    table,
    threshold,
)
from cfgjax.diffusion.guidance.denoiser import with_memory
from cfgjax.diffusion.samplers import ddim, sample
from cfgjax.distributed.sharding import batch_sharding, make_mesh

Z = jax.random.normal(jax.random.key(0), (6, 5))
COARSE = np.linspace(-6, 6, 13).astype(np.float32)
same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)


def at(rule, logsnr=0.5, w=W, **options):
    """The branches of a rule at one level."""
    denoise = with_memory(bind(rule, w, len(Z), **options))
    return jax.jit(lambda z: denoise.branches(z, jnp.full(len(z), logsnr), denoise.init(z))[0])(Z)


# The distribution that is sampled


def test_guidance_in_an_interval_of_sigma_has_the_solution_of_its_flow():
    expected = STD * solution(W, LO, HI)
    np.testing.assert_allclose(expected, 0.2357, atol=5e-5)
    np.testing.assert_allclose(final_std(interval(low=LO, high=HI)), expected, rtol=1e-3)
    np.testing.assert_allclose(final_std(cfg()), STD * solution(W), rtol=1e-3)


def test_a_constant_table_is_a_product_of_intervals():
    edges, factors = (0.2, 1.0, 4.0), (0.5, 2.0, -1.0, 0.25)  # from the largest ς to the smallest
    logsnr = tuple(-2 * np.log(edge) for edge in edges[::-1])
    rule = table(logsnr=(-20.0, *logsnr), factor=factors)
    bounds = [(edges[2], np.inf), (edges[1], edges[2]), (edges[0], edges[1]), (0.0, edges[0])]
    expected = STD * np.prod([solution(W * f, *bound) for f, bound in zip(factors, bounds, strict=True)])
    np.testing.assert_allclose(final_std(rule, levels=gaussians.grid(edges=edges)), expected, rtol=1e-3)


@pytest.mark.parametrize("unit", ["sigma", "logsnr", "flow", "step", "fraction"])
def test_an_interval_is_the_same_in_every_unit(unit):
    known = interval(low=LO, high=HI).bounds(COARSE)
    low, high = known[unit]
    assert low < high
    given = interval(low=low, high=high, unit=unit)
    np.testing.assert_array_equal(evaluations(given, COARSE), evaluations(interval(low=LO, high=HI), COARSE))
    found = given.bounds(COARSE)
    for name in ("step", "fraction"):
        assert found[name] == known[name]
    if unit not in ("step", "fraction"):
        for name in known:
            np.testing.assert_allclose(found[name], known[name], rtol=1e-6)


def test_the_bounds_of_an_interval_in_all_units():
    assert interval(low=0, high=np.inf).bounds() == {
        "logsnr": (-np.inf, np.inf), "sigma": (0, np.inf), "flow": (0, 1)
    }  # fmt: skip
    found = interval(low=1, unit="sigma").bounds(COARSE)
    assert (found["logsnr"], found["flow"]) == ((-np.inf, 0), (0.5, 1))
    assert (found["step"], found["fraction"]) == ((0, 6), (0, 6 / 13))  # λ < 0, as ς > 1


def test_an_interval_contains_its_upper_bound_of_sigma_and_not_its_lower_one():
    rule = interval(low=1.0, high=np.exp(1.0))
    assert [int(n) for n in evaluations(rule, np.array([-2.0, -1.0, 0.0], np.float32))] == [2, 2, 1]
    for logsnr, inside in ((-2.0, True), (-1.0, True), (0.0, False), (-2.01, False)):
        assert (float(at(rule, logsnr).w[0]) == W) == inside


# Neutral values


def test_without_bounds_an_interval_is_its_rule_and_an_empty_one_the_conditional_model_bit_for_bit():
    for low, high in ((None, None), (0.0, np.inf)):
        same(at(interval(low=low, high=high))[:3], at(cfg())[:3])
    plain = jax.jit(lambda z: bind(conditional(), n=len(Z))(z, 0.5))(Z)
    for bounds in ((2.0, 2.0), (3.0, np.inf)):
        found = at(interval(low=bounds[0], high=bounds[1]))
        for prediction in found[:3]:
            same(prediction, plain)
        np.testing.assert_array_equal(found.w, 0)


@pytest.mark.slow
def test_factors_of_one_are_neutral_bit_for_bit():
    for rule in (ramp(start=1, end=1), ramp(shape="cosine", start=1, end=1), table(), table(factor=(1,))):
        same(at(rule, grid=COARSE)[:3], at(cfg())[:3])


# Levels and evaluations


def levels_seen(rule, sharding=None, n=4):
    """{rows of a call: levels} at which a network was called, in a compiled sampler."""
    calls, grid = [], COARSE

    def counted(z, logsnr, label):
        jax.debug.callback(lambda level: calls.append((len(z), round(float(level), 3))), logsnr[0])
        return predict(z, logsnr, label)

    @jax.jit
    def draw(z):
        if sharding is not None:
            z = jax.lax.with_sharding_constraint(z, sharding)
        return sample(ddim(), bind(rule, W, n, grid=grid, predict=counted), keys(n), z, grid)

    drawn = jax.block_until_ready(draw(Z[:n]))
    jax.effects_barrier()
    return {
        rows: sorted({level for size, level in calls if size == rows}) for rows in {size for size, _ in calls}
    }, drawn


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(
    "rule",
    [
        interval(low=LO, high=HI),
        interval(apg(beta=-0.5), low=LO, high=HI),
        apg(interval(low=LO, high=HI)),
        interval(low=5, high=9, unit="step"),
    ],
    ids=repr,
)
def test_outside_of_an_interval_the_null_branch_is_not_evaluated(rule, devices):
    sharding = None if devices == 1 else batch_sharding(make_mesh(devices=jax.devices()[:2]))
    seen, drawn = levels_seen(rule, sharding)
    spent = evaluations(rule, COARSE)
    assert seen == {4 * n: [float(level) for level in COARSE[spent == n]] for n in (1, 2)}
    np.testing.assert_array_equal(np.flatnonzero(spent == 2), [5, 6, 7, 8])
    assert np.isfinite(drawn).all()


@pytest.mark.slow
def test_an_interval_of_a_sharded_batch_needs_no_communication():
    sharding = batch_sharding(make_mesh(devices=jax.devices()[:2]))

    @jax.jit
    def draw(z, rule):
        z = jax.lax.with_sharding_constraint(z, sharding)
        return sample(ddim(), bind(rule, W, 4, grid=COARSE), keys(4), z, COARSE)

    text = draw.lower(Z[:4], apg(interval(low=LO, high=HI), beta=-0.5)).compile().as_text()
    assert "conditional(" in text
    assert not [name for name in ("all-reduce", "all-gather", "all-to-all", "collective-permute") if name in text]


def test_an_interval_of_steps_counts_as_range_does_and_is_not_off_by_one():
    length = len(COARSE)
    for first, end in ((0, 0), (0, 1), (0, length), (3, 5), (length - 1, length), (length, length), (2, 100)):
        for rule in (
            interval(low=first, high=end, unit="step"),
            interval(low=first / length, high=min(end / length, 1), unit="fraction"),
        ):
            guided = np.flatnonzero(evaluations(rule, COARSE) == 2)
            np.testing.assert_array_equal(guided, np.arange(first, min(end, length)), err_msg=repr(rule))


@pytest.mark.slow
@pytest.mark.parametrize("rule", [table(), interval(low=0, high=1, unit="fraction"), ramp()], ids=repr)
def test_the_last_step_is_guided(rule):
    save = lambda evaluation: evaluation.branches
    draw = jax.jit(lambda z: sample(ddim(), bind(rule, W, 6, grid=COARSE), keys(6), z, COARSE, save=save))
    x, seen = draw(Z)
    assert np.all(seen.w[-1] > 0)
    np.testing.assert_allclose(x, (seen.strong.x + seen.w[..., None] * (seen.strong.x - seen.weak.x))[-1], rtol=1e-5)
    assert np.any(x != seen.strong.x[-1])


def test_the_shapes_of_a_ramp():
    p = np.arange(13) / 12
    factors = lambda rule: on_grid(rule, COARSE).at(COARSE)
    np.testing.assert_allclose(factors(ramp()), 2 * p, atol=1e-6)
    np.testing.assert_allclose(factors(ramp(shape="cosine")), 1 - np.cos(np.pi * p), atol=1e-6)
    np.testing.assert_allclose(factors(ramp(start=1, end=3, power=2)), 1 + 2 * p**2, atol=1e-6)
    for shape in ramp.SHAPES:
        np.testing.assert_allclose(factors(ramp(shape=shape)).mean(), 1, atol=1e-6)
        halfway = on_grid(ramp(shape=shape), COARSE).at((COARSE[1:] + COARSE[:-1]) / 2)
        np.testing.assert_allclose(
            halfway, (factors(ramp(shape=shape))[1:] + factors(ramp(shape=shape))[:-1]) / 2, atol=1e-6
        )


def test_a_table_holds_its_ends_and_steps_at_its_levels():
    rule = table(logsnr=(-1, 1), factor=(2, 4))
    np.testing.assert_array_equal(rule.at(np.float32([-9, -1, 0.99, 1, 9])), [2, 2, 2, 4, 4])
    linear = table(logsnr=(-1, 1), factor=(2, 4), kind="linear")
    np.testing.assert_allclose(linear.at(np.float32([-9, -1, 0, 1, 9])), [2, 2, 3, 4, 4])


# What wrappers see


@pytest.mark.slow
def test_wrappers_and_inner_rules_see_the_effective_weight():
    for rule in (ramp(), apg(ramp()), rescale(ramp()), interval(ramp())):
        found = at(rule, COARSE[3], grid=COARSE)
        np.testing.assert_allclose(found.w, W * 2 * 3 / 12, rtol=1e-6)
    half = at(ramp(start=0.5, end=0.5), grid=COARSE)
    for rule in (cfg(), apg(), rescale()):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
            at(ramp(rule, start=0.5, end=0.5), grid=COARSE).guided,
            at(rule, w=W / 2).guided,
        )
    np.testing.assert_allclose(half.w, W / 2)


@pytest.mark.slow
def test_wrappers_of_an_interval_do_nothing_outside_of_it():
    off = interval(low=5.0, high=6.0)
    plain = at(off).strong
    for rule in (
        off,
        apg(off),
        rescale(off),
        cfg_plus_plus(off),
        table(off, factor=(3.0,)),
        interval(cfg_plus_plus(), 5, 6),
    ):
        found = at(rule)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found.guided, plain)
        np.testing.assert_array_equal(found.w, 0)


def memories(rule):
    """The memories of a rule before and after a level outside of its interval, and after one inside."""
    denoise = bind(rule, W, len(Z))
    memory = denoise.init(Z)
    _, inside = denoise(Z, jnp.zeros(len(Z)), memory)
    _, outside = denoise(Z, jnp.full(len(Z), 5.0), inside)
    return memory, inside, outside


@pytest.mark.slow
def test_outside_of_an_interval_the_memory_of_its_rule_does_not_change():
    before, inside, outside = memories(interval(apg(beta=-0.5), low=LO, high=HI))
    assert any(
        np.abs(a - b).max() > 0.01 for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(inside), strict=True)
    )
    same(inside, outside)


@pytest.mark.slow
def test_apg_around_an_interval_forgets_outside_of_it():
    _, inside, outside = memories(apg(interval(low=LO, high=HI), beta=-0.5))
    np.testing.assert_allclose(outside[1], -0.5 * inside[1], rtol=1e-6)


class counting:
    """A rule with a memory, also at w = 0, the number of its levels."""

    at_zero = property(lambda self: self)

    def __call__(self, predict, cond, null, w):
        inner = with_memory(cfg()(predict, cond, null, w))
        return Denoiser(
            lambda z, logsnr, n: (inner(z, logsnr, ())[0], n + 1),
            lambda z: jnp.int32(0),
            None,
            lambda z, logsnr, n: (inner.branches(z, logsnr, ())[0], n + 1),
        )


@pytest.mark.slow
def test_a_rule_that_also_has_a_memory_at_w_zero_keeps_one_for_each():
    _, inside, outside = memories(interval(counting(), low=LO, high=HI))
    assert (inside, outside) == ((1, 0), (1, 1))
    guide = jax.tree_util.Partial(lambda z, logsnr, cond: jnp.sum(-(z**2), axis=1))
    rule = classifier(interval(apg(beta=-0.5), low=LO, high=HI), 0.5, guide=guide)
    assert np.isfinite(bind(rule, W, len(Z))(Z, jnp.zeros(len(Z)), bind(rule, W, len(Z)).init(Z))[0].x).all()


@pytest.mark.slow
def test_samples_at_different_levels_are_guided_where_they_are_inside():
    logsnr = jnp.array([-3.0, -1.0, 0.0, 1.0, 3.0, 5.0])
    rule, denoise = interval(low=LO, high=HI), lambda rule: with_memory(bind(rule, W, len(Z)))
    found, _ = denoise(rule).branches(Z, logsnr, denoise(rule).init(Z))
    for i in range(6):
        np.testing.assert_allclose(found.guided.x[i], at(rule, logsnr[i]).guided.x[i], rtol=1e-5)


def test_at_zero_no_wrapper_computes_the_null_branch():
    for rule in (interval(), ramp(), table(), rescale(), apg(), rescale(interval(apg()))):
        assert rule.at_zero == conditional()
    assert threshold(interval()).at_zero == threshold(conditional())
    perturbed = lambda rule: pag(rule, scale=1.0)  # is guided at w = 0 too, by a weak prediction without a label
    assert rescale(perturbed(cfg())).at_zero == rescale(perturbed(conditional()))
    assert rescale(interval(perturbed(cfg()))).off == rescale(perturbed(conditional()))
    guided = classifier(cfg())
    assert rescale(guided).at_zero == rescale(guided) and rescale(guided).off == classifier(conditional())
    assert interval(cfg_plus_plus()).off == conditional()


@pytest.mark.parametrize("rule", [cfg_plus_plus(), cfg_zero(zero_steps=1), rescale(cfg_plus_plus())])
def test_an_interval_of_a_rule_that_guides_at_w_zero_stays_one(rule):
    bounded = interval(rule, low=0.3, high=2.0)
    assert bounded.at_zero == bounded


# Errors


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: interval(low=5, high=0.3), "low is 5 and high is 0.3; need low ≤ high"),
        (lambda: interval(low=-1), "low is -1; need a number in \\[0, inf\\]"),
        (lambda: interval(high=float("nan")), "high is nan; need a number"),
        (lambda: interval(low="0.3"), "low is '0.3'; need a number"),
        (lambda: interval(high=1.5, unit="flow"), "high is 1.5; need a number in \\[0, 1\\]"),
        (lambda: interval(unit="sigm"), "unit is 'sigm', did you mean 'sigma'"),
        (lambda: ramp(shape="cos"), "shape is 'cos', did you mean 'cosine'|; known"),
        (lambda: ramp(power=-1), "power is -1"),
        (lambda: table(logsnr=(1, 0), factor=(1, 1)), "does not increase"),
        (lambda: table(logsnr=(1, 2), factor=(1,)), "2 values of logsnr and 1 of factor"),
        (lambda: table(logsnr=(), factor=()), "0 values of logsnr"),
        (lambda: table(logsnr=1.0), "logsnr is 1.0; need a tuple"),
        (lambda: table(factor=(float("nan"),)), "factor is nan"),
        (lambda: bind(interval(conditional())), "interval wraps conditional\\(\\), which has no weak prediction"),
        (lambda: bind(interval(low=1, unit="step")), "is given in steps; take `on_grid"),
        (lambda: bind(ramp()), "is given in steps; take `on_grid"),
    ],
)
def test_bad_arguments_are_one_line_errors(make, said):
    with pytest.raises(ValueError, match=said) as error:
        make()
    assert "\n" not in str(error.value)
