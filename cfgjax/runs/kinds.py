"""What kind of network a run's config names, and the sections that such a config has."""

from cfgjax.nets import CLASSIFIERS, NOISY_CLASSIFIERS
from cfgjax.runs.config import CLASSIFIER_SECTIONS, NOISY_CLASSIFIER_SECTIONS, SECTIONS


def is_classifier(config):
    """Whether config.model names a classifier, of clean or of noisy images; otherwise it is a denoiser."""
    return config.get("model", {}).get("name") in CLASSIFIERS | NOISY_CLASSIFIERS


def is_noisy_classifier(config):
    """Whether config.model names a classifier that takes λ."""
    return config.get("model", {}).get("name") in NOISY_CLASSIFIERS


def sections(config):
    """The sections that the config of such a network has."""
    if is_noisy_classifier(config):
        return NOISY_CLASSIFIER_SECTIONS
    return CLASSIFIER_SECTIONS if is_classifier(config) else SECTIONS
