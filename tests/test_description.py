"""Laws of a model's one line."""

import re

import pytest
from tiny import CONFIGS, mixture_config, of_mixture, settings

from cfgjax.data.sources.registry import mixture_of
from cfgjax.models.description import describe_model
from cfgjax.models.model import Model
from cfgjax.runs.config import load_file


@pytest.mark.parametrize("name", ["digits", "mixture", "imagenet64", "adm:64"])
def test_a_description_has_network_data_classes_step_and_ema(name):
    config = load_file(CONFIGS[name])
    text = describe_model(settings(config), 600, 0.999)
    words = [config.model.name, config.data.source, *map(str, config.data.image_shape), str(config.data.num_classes)]
    assert "\n" not in text
    assert all(re.search(rf"\b{word}", text) for word in words) and text.endswith(", step 600, ema 0.999")
    assert describe_model(settings(config), 600, 0).endswith(", step 600, no ema")


def test_the_repr_of_a_model_is_its_description():
    config = mixture_config()
    model = Model(config, {}, step=7, ema=0.5, bind_params=of_mixture(mixture_of(settings(config).data)))
    assert repr(model) == "Model(mlp, mixture 2-d, 3 classes, step 7, ema 0.5)"
    assert "step" not in repr(Model(config, {}, bind_params=model.bind))
