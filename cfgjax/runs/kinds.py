"""The kind of network that a run's config describes, and the sections of such a config."""

from ml_collections import ConfigDict

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
