"""Laws of classifier guidance through `Model`, with exact scores and the exact classifier of a mixture."""

import jax
import numpy as np
import pytest
from tiny import mixture_config, settings

from cfgjax.base.errors import UsageError
from cfgjax.data.sources.registry import toy_mixture
from cfgjax.diffusion.guidance import classifier, conditional
from cfgjax.distributed.sharding import make_mesh
from cfgjax.models.guide import Guide
from cfgjax.models.model import Model

CONFIG = mixture_config()
MIXTURE = toy_mixture(CONFIG.data.means, CONFIG.data.stds, CONFIG.data.weights)
LABELS = np.arange(24) % 3


class Exact(Guide):
    """The mixture's own classifier."""

    def __init__(self, config=CONFIG):
        self.settings = settings(config)

    def bind(self, params):
        return MIXTURE.log_posterior

    def params_on(self, mesh):
        return {}


def exact(label_seen=True, devices=1):
    """The `Model` of exact scores; without label_seen that of the unconditional ones, whatever the label."""
    predict = lambda z, logsnr, cond: MIXTURE.predict(z, logsnr, cond["label"] if label_seen else None)
    return Model(CONFIG, {}, mesh=make_mesh(devices=jax.devices()[:devices]), bind_params=lambda params: predict)


@pytest.fixture(scope="module")
def guide():
    return Exact()


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ancestral(v=0.3)", "ddim"])
def test_scale_s_on_the_unconditional_model_is_weight_s_minus_one(guide, sampler):
    rule = classifier(conditional(), 2.5, guide=guide)
    by_gradient = exact(False).sample(LABELS, rule=rule, num_steps=32, sampler=sampler)
    by_weight = exact().sample(LABELS, 1.5, num_steps=32, sampler=sampler)
    np.testing.assert_allclose(by_gradient, by_weight, atol=2e-3)
    assert np.abs(by_gradient - exact().sample(LABELS, 0.0, num_steps=32, sampler=sampler)).max() > 0.05


@pytest.mark.slow
def test_both_kinds_of_guidance_add(guide):
    both = exact().sample(LABELS, 0.5, rule=classifier(guide=guide), num_steps=32)
    np.testing.assert_allclose(both, exact().sample(LABELS, 1.5, num_steps=32), atol=2e-3)


def test_scale_zero_is_no_guidance_and_scales_are_per_sample(guide):
    scales = np.where(LABELS == 0, 0.0, 3.0)
    some = exact().sample(LABELS, rule=classifier(scale=scales, guide=guide), num_steps=8, batch_size=7)
    none = exact().sample(LABELS, num_steps=8)
    np.testing.assert_allclose(some[LABELS == 0], none[LABELS == 0], atol=1e-5)
    assert np.abs(some - none)[LABELS != 0].max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("form", ["z", "mean"])
def test_the_forms_of_ancestral_sampling_tend_to_the_form_in_eps(guide, form):
    distances = []
    for num_steps in (64, 256):
        options = dict(num_steps=num_steps, sampler="ancestral(v=0)")
        rules = [classifier(conditional(), 2.0, f, guide) for f in ("eps", form)]
        eps, other = (exact(False).sample(LABELS, rule=rule, **options) for rule in rules)
        distances.append(np.abs(eps - other).mean())
    assert distances[1] < 0.5 * distances[0] < 0.1


@pytest.mark.slow
def test_samples_are_the_same_on_any_number_of_devices(guide):
    options = dict(rule=classifier(scale=2.0, guide=guide), num_steps=8)
    one, eight = (exact(devices=devices).sample(LABELS, **options) for devices in (1, 8))
    np.testing.assert_allclose(one, eight, atol=1e-4)


@pytest.mark.slow
def test_changing_a_scale_compiles_nothing(guide):
    model, traces = exact(), []
    bind = model.bind
    model.bind = lambda params: traces.append(1) or bind(params)
    for scale in (1.0, 2.0, 0.0):
        model.sample(LABELS, rule=classifier(scale=scale, guide=guide), num_steps=4)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"data.num_classes": 5}, "the classifier's number of classes is 5, the model's 3"),
        ({"data.image_shape": (4,)}, r"the classifier's image size is \(4,\), the model's \(2,\)"),
        ({"diffusion.logsnr_max": 9.0}, "the classifier's process is .* 9.*, the model's .* 20"),
    ],
)
def test_a_classifier_of_other_data_or_another_process_is_refused(changed, told):
    rule = classifier(guide=Exact(mixture_config(**changed)))
    with pytest.raises(UsageError, match=told):
        exact().sample(LABELS, rule=rule)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(rule=classifier()), r"rule classifier\(\) has no guide"),
        (
            dict(rule=classifier(scale=np.float32(np.inf), guide=Exact())),
            "scale is inf; need numbers that are finite",
        ),
        (dict(rule=classifier(scale=np.array([1.0, 2.0]), guide=Exact())), r"scale has shape \(2,\) for 24 labels"),
        (dict(rule=classifier(form="z", guide=Exact()), sampler="ddim()"), "is for sampler ancestral"),
    ],
)
def test_bad_input_is_a_one_line_error(options, message):
    with pytest.raises(UsageError, match=message) as error:
        exact().sample(LABELS, **options)
    assert "\n" not in str(error.value)
