"""Laws of classifier guidance through `Model`, with exact scores and the exact classifier of a mixture."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny import mixture_config

from cfgjax.base.errors import UsageError
from cfgjax.data.sources.registry import toy_mixture
from cfgjax.distributed.sharding import make_mesh
from cfgjax.models.guide import ClassifierGuidance
from cfgjax.models.model import Model

CONFIG = mixture_config()
MIXTURE = toy_mixture(CONFIG.data.means, CONFIG.data.stds, CONFIG.data.weights)
LABELS = np.arange(24) % 3


class Exact:
    """The mixture's own classifier, as a `Classifier`."""

    config = CONFIG

    def bind(self, params):
        return MIXTURE.log_posterior

    def params_on(self, mesh):
        return {}


def exact(label_seen=True, devices=1):
    """The `Model` of exact scores; without label_seen that of the unconditional ones, whatever the label."""
    eps = MIXTURE.eps if label_seen else lambda z, logsnr, label: MIXTURE.eps(z, logsnr)
    return Model(CONFIG, {}, mesh=make_mesh(devices=jax.devices()[:devices]), bind_params=lambda params: eps)


@pytest.fixture(scope="module")
def classifier():
    return Exact()


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_scale_s_on_the_unconditional_model_is_weight_s_minus_one(classifier, sampler):
    by_gradient = exact(False).sample(
        LABELS, classifier=classifier, classifier_scale=2.5, num_steps=32, sampler=sampler
    )
    by_weight = exact().sample(LABELS, 1.5, num_steps=32, sampler=sampler)
    np.testing.assert_allclose(by_gradient, by_weight, atol=2e-3)
    assert np.abs(by_gradient - exact().sample(LABELS, 0.0, num_steps=32, sampler=sampler)).max() > 0.05


def test_both_kinds_of_guidance_add(classifier):
    both = exact().sample(LABELS, 0.5, classifier=classifier, classifier_scale=1.0, num_steps=32)
    np.testing.assert_allclose(both, exact().sample(LABELS, 1.5, num_steps=32), atol=2e-3)


def test_scale_zero_is_no_guidance_and_scales_are_per_sample(classifier):
    scales = np.where(LABELS == 0, 0.0, 3.0)
    some = exact().sample(LABELS, classifier=classifier, classifier_scale=scales, num_steps=8)
    none = exact().sample(LABELS, num_steps=8)
    np.testing.assert_allclose(some[LABELS == 0], none[LABELS == 0], atol=1e-5)
    assert np.abs(some - none)[LABELS != 0].max() > 1e-2


@pytest.mark.parametrize("form", ["z", "mean"])
def test_the_forms_of_ancestral_sampling_tend_to_the_form_in_eps(classifier, form):
    distances = []
    for num_steps in (64, 256):
        options = dict(classifier=classifier, classifier_scale=2.0, num_steps=num_steps, v=0.0)
        eps, other = (exact(False).sample(LABELS, classifier_form=f, **options) for f in ("eps", form))
        distances.append(np.abs(eps - other).mean())
    assert distances[1] < 0.5 * distances[0] < 0.1


def test_samples_are_the_same_on_any_number_of_devices(classifier):
    options = dict(classifier=classifier, classifier_scale=2.0, num_steps=8)
    one, eight = (exact(devices=devices).sample(LABELS, **options) for devices in (1, 8))
    np.testing.assert_allclose(one, eight, atol=1e-4)


def test_scales_compile_nothing(classifier):
    model, traces = exact(), []
    bind = model.bind
    model.bind = lambda params: traces.append(1) or bind(params)
    for scale in (1.0, 2.0, 0.0):
        model.sample(LABELS, classifier=classifier, classifier_scale=scale, num_steps=4)
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
    classifier = Exact()
    classifier.config = mixture_config(**changed)
    with pytest.raises(UsageError, match=told):
        exact().sample(LABELS, classifier=classifier, classifier_scale=1.0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (dict(classifier_scale=1.0), "classifier_scale is 1.0 with no classifier"),
        (dict(classifier=Exact()), "without classifier_scale"),
        (dict(classifier=Exact(), classifier_scale=np.nan), "is not finite"),
        (dict(classifier=Exact(), classifier_scale=[1.0, 2.0]), r"has shape \(2,\) for 24 labels"),
        (dict(classifier=Exact(), classifier_scale=1.0, classifier_form="x"), "unknown classifier form 'x'"),
        (
            dict(classifier=Exact(), classifier_scale=1.0, classifier_form="z", sampler="ddim"),
            "is for sampler ancestral",
        ),
    ],
)
def test_bad_input_is_one_line(options, told):
    with pytest.raises(UsageError, match=told):
        exact().sample(LABELS, **options)


def test_guidance_is_a_value():
    one = Exact()
    assert ClassifierGuidance(one, "z") == ClassifierGuidance(one, "z")
    with pytest.raises(dataclasses.FrozenInstanceError):
        ClassifierGuidance(one).form = "z"
