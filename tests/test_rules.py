"""Laws of guidance rules that `Model` binds, with the exact predictions of a mixture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import digits_config, mixture_config, of_mixture, settings

from cfgjax.base.errors import UsageError
from cfgjax.data.sources.registry import mixture_of
from cfgjax.diffusion.guidance import apg, cfg_plus_plus, compose, negative, rescale, threshold
from cfgjax.diffusion.process import diffuse
from cfgjax.diffusion.samplers import clipped
from cfgjax.distributed.sharding import make_mesh
from cfgjax.models.binding import check_together
from cfgjax.models.model import Model
from cfgjax.models.resolving import resolved_combinations

CONFIG = mixture_config()
MIXTURE = mixture_of(settings(CONFIG).data)
LABELS = np.arange(12) % 3
RULES = {  # text of a rule, and with other numbers
    "interval(low=0.3, high=5)": "interval(low=1, high=2)",
    "interval(low=1, high=3, unit='step')": "interval(low=0, high=4, unit='step')",
    "ramp(start=0.5)": "ramp(start=0, end=1, power=2)",
    "table(logsnr=(-2, 0), factor=(1, 2))": "table(logsnr=(-1, 3), factor=(0, 1))",
    "rescale(phi=0.7)": "rescale(phi=0.2)",
    "apg(eta=0.2, beta=-0.5, r=2)": "apg(eta=0, beta=0.1, r=inf)",
    "cfg_plus_plus()": None,
    "cfg_zero(zero_steps=2)": "cfg_zero(zero_steps=0)",
    "channels(n=1)": "channels(n=2)",
    "compose(labels=(1, 2), scales=(0.5, -0.5))": "compose(labels=(2, 3), scales=(0.1, 2))",
    "negative(label=1)": "negative(label=3)",
    "rescale(interval(apg(eta=0.2), low=1, high=5), phi=0)": "rescale(interval(apg(eta=0.4), low=0, high=9), phi=1)",
}
SAMPLERS = {  # text of a sampler, and with other numbers
    "ancestral(v=0.3)": "ancestral(v=0.7)",
    "ddim()": None,
    "ddim(eta=0.5)": "ddim(eta=1)",
    "heun()": None,
    "heun(s_churn=1, s_max=50)": "heun(s_churn=8, s_min=0.1, s_noise=1.01)",
    "dpmpp_2m()": None,
    "dpmpp_2m_sde(eta=0.5)": "dpmpp_2m_sde(eta=1)",
    "unipc()": None,
    "tilted(v=0.3, particles=2)": "tilted(v=0.7, particles=2)",
}
GRIDS = "schedule()", "edm(rho=7)", "edm(rho=5)", "uniform()", "flow(shift=2)"
every_rule = pytest.mark.parametrize("rule", RULES)


def exact(devices=1, bound=None):
    mesh = make_mesh(devices=jax.devices()[:devices])
    return Model(CONFIG, {}, mesh=mesh, bind_params=bound or of_mixture(MIXTURE))


def weight_of(rule):
    """A weight w in the range of a rule."""
    return -0.6 if "plus" in repr(rule) else 1.5


def draw(model, rule, w=None, labels=LABELS, **options):
    w = weight_of(rule) if w is None else w
    return model.sample_float(labels, w, rule=rule, **{"sampler": "ddim()", "num_steps": 5} | options)


@pytest.mark.slow
@every_rule
def test_changing_a_number_of_a_rule_compiles_nothing(rule):
    traces = []
    bind = of_mixture(MIXTURE)
    model = exact(bound=lambda params: traces.append(1) or bind(params))
    found = draw(model, rule)
    other = draw(model, RULES[rule] or rule, w=-0.3)
    assert len(traces) == 1
    assert np.abs(found - other).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_changing_a_number_of_a_sampler_or_the_grid_compiles_nothing(sampler):
    traces = []
    bind = of_mixture(MIXTURE)
    model = exact(bound=lambda params: traces.append(1) or bind(params))
    numbers = dict(w=0.5, sampler=sampler), dict(w=2.0, sampler=SAMPLERS[sampler] or sampler)
    found = [draw(model, "cfg()", labels=np.repeat(LABELS, 2), grid=grid, **one) for grid in GRIDS for one in numbers]
    assert len(traces) == 1
    distances = [np.abs(one - other).max() for i, one in enumerate(found) for other in found[:i]]
    assert min(distances) > 1e-3


@pytest.mark.slow
@every_rule
def test_a_sample_does_not_depend_on_its_batch_or_the_number_of_devices(rule):
    options = {} if "plus" in rule else {"sampler": "ancestral(v=0.3)"}
    found = draw(exact(), rule, **options)
    np.testing.assert_allclose(draw(exact(2), rule, labels=LABELS[:5], batch_size=2, **options), found[:5], atol=1e-4)


@pytest.mark.slow
def test_a_sample_has_the_same_noise_under_every_rule():
    model, first = exact(), set()
    for rule in (*RULES, "cfg()", "conditional()"):
        options = dict(rule=rule, sampler="ddim()", num_steps=5, return_trajectory=True, seed=4)
        _, seen = model.sample(LABELS[:2], weight_of(rule), **options)
        first.add(seen.z[0].tobytes())
    assert len(first) == 1


@pytest.mark.slow
def test_labels_of_a_rule_are_per_sample():
    model, others = exact(), np.array([2, 0, 1, 1, 2])
    found = draw(model, negative(label=others), labels=LABELS[:5], batch_size=2)
    both = draw(model, compose(labels=others[:, None], scales=np.linspace(-1, 1, 5)[:, None]), labels=LABELS[:5])
    for i, label in enumerate(others.tolist()):
        np.testing.assert_allclose(found[i], draw(model, negative(label=label), labels=LABELS[:5])[i], atol=1e-5)
        rule = compose(labels=(label,), scales=(np.linspace(-1, 1, 5)[i].item(),))
        np.testing.assert_allclose(both[i], draw(model, rule, labels=LABELS[:5])[i], atol=1e-5)


def test_the_null_label_as_the_negative_one_is_classifier_free_guidance():
    model = exact()
    np.testing.assert_allclose(draw(model, "negative(label=3)"), draw(model, "cfg()"), atol=1e-6)


def test_a_negative_label_needs_no_null_label():
    model = exact()
    model.has_null_label = False
    assert np.isfinite(draw(model, "negative(label=2)")).all()
    with pytest.raises(UsageError, match="negative: label 0 is 3; need 0 … 2"):
        draw(model, "negative(label=3)")
    with pytest.raises(UsageError, match="guidance needs a network trained with dropped labels"):
        draw(model, "compose(labels=(1,))")


@pytest.mark.slow
def test_at_weight_zero_the_default_rule_leaves_the_null_branch_out():
    rows = []
    bind = of_mixture(MIXTURE)
    counting = lambda params: lambda z, *rest: rows.append(len(z)) or bind(params)(z, *rest)
    for rule in ("rescale(interval(apg(), low=0.3))", "ramp()", "negative(label=2)"):
        config = mixture_config(**{"sample.rule": rule})
        model = Model(config, {}, mesh=make_mesh(devices=jax.devices()[:1]), bind_params=counting)
        model.sample(LABELS[:4], 0.0, num_steps=2)
        assert set(rows) == {4}
    assert cfg_plus_plus().at_zero == cfg_plus_plus()  # g = 1, which renoises with the null branch


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(rule="negative(label=4)"), "negative: label 0 is 4; need 0 … 3"),
        (dict(rule="compose(labels=(1, -1))"), "compose: labels 1 is -1; need 0 … 3"),
        (dict(rule=negative(label=np.array([1, 2]))), "label has shape \\(2,\\) for 12 labels"),
        (dict(rule=negative(label=np.full(12, 0.5))), "negative: label has dtype float64"),
        (dict(rule=compose(labels=np.ones((3, 2), int))), "labels has shape \\(3, 2\\) for 12 labels"),
        (dict(rule="cfg_plus_plus()", sampler="ancestral(v=0.3)"), "for samplers that renoise with ε̃, such as ddim"),
        (dict(rule="interval(cfg_plus_plus())", sampler="ancestral(v=0.3)"), "for samplers that renoise with ε̃"),
        (dict(rule="threshold()"), "rule threshold\\(\\) is for images"),
        (dict(rule="apg(conditional())"), "apg wraps conditional\\(\\), which has no weak prediction"),
        (dict(rule="apg(rescale())"), "rescale has no effect inside apg"),
        (dict(rule="interval(low=2, high=1)"), "low is 2 and high is 1; need low ≤ high"),
        (dict(rule="interval(low=0.1, unit='seconds')"), "unit is 'seconds'"),
        (dict(rule="interval(low_logsnr=0.1)"), "interval takes no 'low_logsnr'"),
        (dict(rule="intervall()"), "unknown rule 'intervall', did you mean 'interval'"),
    ],
    ids=str,
)
def test_rules_that_do_not_fit_are_one_line_errors(options, said):
    with pytest.raises(UsageError, match=said) as error:
        draw(exact(), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rule", ["cfg_plus_plus()", "interval(threshold(cfg_plus_plus()), low=0.3)"])
def test_cfg_plus_plus_is_for_scales_from_0_to_1(rule):
    model = Model(digits_config(), {})
    for w in (3.0, -1.1, [-0.5, 0.1]):
        with pytest.raises(UsageError, match=r"need w in \[-1, 0\], a scale 1 \+ w in \[0, 1\]") as error:
            model.sample_float([0, 1], w, rule=rule, sampler="ddim()")
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match=r"w is 3 for rule cfg_plus_plus\(\)"):
        resolved_combinations({"rule": [rule], "sampler": ["ddim()"], "grid": ["edm()"], "guidance": [0.0, 3.0]}, model)


def test_thresholds_are_for_images():
    check_together(threshold(), object(), Model(digits_config(), {}, bind_params=lambda params: None))


@pytest.mark.slow
@pytest.mark.parametrize("rule", [apg(), rescale()], ids=repr)
def test_after_clipping_eps_agrees_with_x(rule):
    z = jax.random.normal(jax.random.key(0), (4, 2))
    label = jnp.arange(4) % 3
    denoise = rule(MIXTURE.predict, label, jnp.full(4, 3), 3.0)
    found = denoise(z, np.full(4, 1.0, np.float32), denoise.init(z))[0]
    after = clipped(found, 1.0)
    assert np.abs(found.x).max() > 1 >= np.abs(after.x).max()
    np.testing.assert_allclose(diffuse(after.x, after.eps, 1.0), z, atol=1e-5)


def test_clipping_moves_the_eps_of_cfg_plus_plus_by_what_it_takes_from_x():
    z = jax.random.normal(jax.random.key(0), (4, 2))
    denoise = cfg_plus_plus()(MIXTURE.predict, jnp.arange(4) % 3, jnp.full(4, 3), -0.2)
    before = denoise(z, np.full(4, 1.0, np.float32), denoise.init(z))[0]
    after = clipped(before, 1.0)
    assert np.abs(before.x - after.x).max() > 0.1
    np.testing.assert_allclose(diffuse(after.x, after.eps, 1.0), diffuse(before.x, before.eps, 1.0), atol=1e-5)
    np.testing.assert_array_equal(clipped(before, 1.0, "x_only").eps, before.eps)
