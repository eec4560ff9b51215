"""Perturbed-attention guidance through `Model`, on networks of ADM without a null label."""

import jax
import numpy as np
import pytest
from tiny import digits_config, mixture_config, settings

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.guidance import pag, seg
from cfgjax.distributed.sharding import make_mesh
from cfgjax.evaluation.frontier.frontier_settings import make_settings
from cfgjax.models.model import Model
from cfgjax.models.network import init_params, make_network
from cfgjax.models.usable_rules import usable_rules
from cfgjax.runs.sample_options import axes

CONFIG = digits_config(**{"model.channels": 32, "data.image_shape": (4, 4, 1)})
CONFIG.model.null_label = False
CONFIG.diffusion.p_uncond = 0.0
LABELS = np.arange(4)


def random_params():
    net = make_network(settings(CONFIG))
    shapes = jax.eval_shape(lambda key: init_params(net, key, (4, 4, 1)), jax.random.key(0))
    rng = np.random.default_rng(0)
    size = lambda path: 1.0 if "qkv" in jax.tree_util.keystr(path) else 0.1
    draw = lambda path, leaf: size(path) * rng.standard_normal(leaf.shape, np.float32)
    return jax.tree_util.tree_map_with_path(draw, shapes)


def make(devices=1):
    mesh = make_mesh(devices=jax.devices()[:devices])
    model = Model(CONFIG, None, mesh=mesh)
    model.put(random_params())
    return model


@pytest.fixture(scope="module")
def model():
    return make()


def draw(model, rule, w=2.0):
    return model.sample_float(LABELS, w, rule=rule, num_steps=3)


@pytest.mark.slow
def test_it_needs_no_null_label_and_zero_weight_or_blur_is_the_conditional_model(model):
    plain = draw(model, "conditional()", 0.0)
    assert not model.has_null_label
    np.testing.assert_array_equal(draw(model, "pag()", 0.0), plain)
    np.testing.assert_allclose(draw(model, "seg(blur=0)"), plain, atol=1e-5)
    for rule in (pag(), seg(blur=0.5)):
        found = draw(model, rule)
        assert np.isfinite(found).all()
        assert np.abs(found - plain).max() > 1e-3


@pytest.mark.slow
def test_samples_are_the_same_on_any_number_of_devices(model):
    np.testing.assert_allclose(draw(make(4), seg(blur=0.5)), draw(model, seg(blur=0.5)), atol=1e-4)


@pytest.mark.slow
def test_changing_a_scale_or_a_blur_compiles_nothing(model):
    before = model._sample._cache_size()
    for scale, blur, w in ((1.0, 0.5, 0.0), (2.0, np.inf, 1.0)):
        draw(model, seg(scale=scale, blur=blur), w)
    assert model._sample._cache_size() == before + 1


def test_a_network_without_the_attention_is_refused_before_anything_is_drawn(model):
    given = {"rule": ("pag(layers=16)",), "guidance": (1.0,)}
    with pytest.raises(UsageError, match="layers is 16; the network has attention on maps of height 4") as error:
        make_settings(axes({}, given=given), model)
    assert "\n" not in str(error.value)
    points = Model(mixture_config(), {})
    for draw in (
        lambda: make_settings(axes({}, given={"rule": ("pag()",)}), points),
        lambda: points.sample([0, 1], 1.0, rule="pag()", num_steps=4),
    ):
        told = r"the network MLP has no self-attention to perturb.*cfg\(\), .*negative"
        with pytest.raises(UsageError, match=told) as error:
            draw()
        assert "seg" not in str(error.value) and "classifier" not in str(error.value)


def test_the_rules_of_a_network_are_those_that_it_has_the_parts_for(model):
    assert usable_rules(model) == (
        "conditional(), autoguidance() with --weak, negative(label=0), "
        "classifier(conditional()) with --guide, pag(), seg()"
    )
    points = Model(mixture_config(**{"diffusion.p_uncond": 0.0}), {})
    assert usable_rules(points) == "conditional(), autoguidance() with --weak, negative(label=0)"
    with pytest.raises(UsageError, match=r"dropped labels.*negative\(label=0\)(?!.*pag)"):
        points.check_guidance([1.0])
    without_labels = digits_config(**{"model.conditional": False, "diffusion.p_uncond": 0.0})
    assert "negative" not in usable_rules(Model(without_labels, {}))


@pytest.mark.slow
def test_it_is_measured_at_any_weight_without_a_null_label(model):
    given = {"rule": ("pag()", "seg(blur=2)"), "guidance": (0.0, 1.0)}
    assert len(make_settings(axes(model.defaults.options, given=given), model)) == 4
    with pytest.raises(UsageError, match="dropped labels"):
        make_settings(axes({}, given={"rule": ("pag(cfg(), scale=1)",), "guidance": (1.0,)}), model)
