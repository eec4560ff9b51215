"""The kind of network that a run's config describes, and the sections of such a config."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from cfgjax.base.errors import choose
from cfgjax.nets import CLASSIFIERS, NOISY_CLASSIFIERS
from cfgjax.runs.config import CLASSIFIER_SECTIONS, NOISY_CLASSIFIER_SECTIONS, SECTIONS


def is_classifier(config: ConfigDict) -> bool:
    """Whether config.model names a classifier, of clean or noisy images. Otherwise it names a denoiser."""
    return config.get("model", {}).get("name") in CLASSIFIERS | NOISY_CLASSIFIERS


def is_noisy_classifier(config: ConfigDict) -> bool:
    """Whether config.model names a classifier that takes λ."""
    return config.get("model", {}).get("name") in NOISY_CLASSIFIERS


def sections(config: ConfigDict) -> tuple[str, ...]:
    """Returns the names of the sections that a config for this kind of network has."""
    if is_noisy_classifier(config):
        return NOISY_CLASSIFIER_SECTIONS
    return CLASSIFIER_SECTIONS if is_classifier(config) else SECTIONS


def is_image(data: ConfigDict | Mapping[str, Any]) -> bool:
    """Whether config.data describes images, in [−1, 1], rather than points or latents."""
    kinds = {"image": True, "latent": False}
    return choose("data.kind", data.get("kind", "image"), kinds) and len(data["image_shape"]) == 3
