"""All values of a config, read and checked once.

Code that receives a config converts it to `Settings` first; the code below takes the settings or one of their sections.
Importing this module does not import jax: commands check the kinds of all values before they start jax.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from cfgjax.base.errors import UsageError, nearest
from cfgjax.runs.data_settings import DataSettings, ModelSettings
from cfgjax.runs.diffusion_settings import CONTINUOUS, DISCRETE, DiffusionSettings
from cfgjax.runs.sampling_settings import EvaluateSettings, SampleSettings
from cfgjax.runs.sections import check_value, kinds_of, read_section
from cfgjax.runs.training_settings import (
    CheckpointSettings,
    ClusterSettings,
    EMASettings,
    LogSettings,
    MeshSettings,
    OptimizerSettings,
    StorageSettings,
    TrainSettings,
)
from cfgjax.runs.values import Kind, Seed, kind_of, shown

SECTIONS: dict[str, type] = {
    "data": DataSettings,
    "model": ModelSettings,
    "diffusion": DiffusionSettings,
    "optimizer": OptimizerSettings,
    "ema": EMASettings,
    "train": TrainSettings,
    "checkpoint": CheckpointSettings,
    "sample": SampleSettings,
    "evaluate": EvaluateSettings,
    "mesh": MeshSettings,
    "cluster": ClusterSettings,
    "log": LogSettings,
    "storage": StorageSettings,
}
KIND_OF_KEY: dict[str, Kind] = {"seed": kind_of(Seed)}
KIND_OF_KEY |= {f"{name}.{key}": kind for name, section in SECTIONS.items() for key, kind in kinds_of(section).items()}
LATER_SECTIONS = ("evaluate", "cluster", "log", "storage")  # absent from the config.json of older versions


@dataclasses.dataclass(frozen=True)
class Settings:
    """All sections of a config. `diffusion` and `sample` are None where the network has no such section.

    given: the values as the config has them, {section: {key: value}}, without defaults. config.json, records and
    digests are made from these.
    """

    seed: int
    data: DataSettings
    model: ModelSettings
    diffusion: DiffusionSettings | None
    optimizer: OptimizerSettings
    ema: EMASettings
    train: TrainSettings
    checkpoint: CheckpointSettings
    sample: SampleSettings | None
    evaluate: EvaluateSettings
    mesh: MeshSettings
    cluster: ClusterSettings
    log: LogSettings
    storage: StorageSettings
    given: Mapping[str, Any] = dataclasses.field(repr=False)

    @classmethod
    def from_config(
        cls, config: "ConfigDict | Mapping[str, Any] | Settings", optional: Sequence[str] = ()
    ) -> "Settings":
        """Returns the settings of a config. Settings are returned as they are.

        optional: sections that may be missing and then have their defaults. Raises UsageError for a missing or unknown
        section or key, a value that is not of its key's kind, and values that contradict each other in a section.
        """
        if isinstance(config, Settings):
            return config
        given = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
        check_kinds(given)
        network = given.get("model", {}).get("name")
        names = section_names(network)
        check_sections(given, names, optional)
        check_keys_of_classifier(given, network)
        read: dict[str, Any] = {
            name: read_section(section, name, given.get(name, {})) if name in names else None
            for name, section in SECTIONS.items()
        }
        return cls(seed=int(given["seed"]), **read, given=given)

    def replace(self, **values: Any) -> "Settings":
        """Returns the settings with other values of some keys, `**{"train.batch_size": 8}`."""
        given = self.to_dict()
        for key, value in values.items():
            section, _, name = key.rpartition(".")
            (given.setdefault(section, {}) if section else given)[name] = value
        return Settings.from_config(given, LATER_SECTIONS)

    def to_dict(self) -> dict[str, Any]:
        """Returns a copy of `given`."""
        return {name: dict(value) if isinstance(value, dict) else value for name, value in self.given.items()}

    @property
    def is_classifier(self) -> bool:
        """Whether the network is a classifier, of clean or noisy images. Otherwise it is a denoiser."""
        return is_classifier(self.model.name)

    @property
    def is_noisy_classifier(self) -> bool:
        """Whether the network is a classifier that takes λ."""
        return is_noisy_classifier(self.model.name)


def is_classifier(network: Any) -> bool:
    """Whether a value of model.name is that of a classifier, of clean or noisy images."""
    from cfgjax.nets import CLASSIFIERS  # imports jax

    return network in CLASSIFIERS or is_noisy_classifier(network)


def is_noisy_classifier(network: Any) -> bool:
    """Whether a value of model.name is that of a classifier that takes λ."""
    from cfgjax.nets import NOISY_CLASSIFIERS  # imports jax

    return network in NOISY_CLASSIFIERS


def section_names(network: Any) -> list[str]:
    """Returns the names of the sections that a config with this value of model.name has, besides the seed."""
    absent = {"diffusion", "sample"} if is_classifier(network) else set()
    absent -= {"diffusion"} if is_noisy_classifier(network) else set()
    return [name for name in SECTIONS if name not in absent]


def check_kinds(given: ConfigDict | Mapping[str, Any]) -> None:
    """Raises UsageError for the first value of a config that is not of its key's kind."""
    for name, value in given.items():
        if name not in SECTIONS:
            if name in KIND_OF_KEY:
                check_value(name, value, KIND_OF_KEY[name])
            continue
        if not isinstance(value, (ConfigDict, dict)):
            example = f"{name}.{next(iter(kinds_of(SECTIONS[name])))}"
            raise UsageError(f"{name} is {shown(value)}; need a section, with keys such as {example}")
        for key, inner in value.items():
            if f"{name}.{key}" in KIND_OF_KEY:
                check_value(f"{name}.{key}", inner, KIND_OF_KEY[f"{name}.{key}"])


def check_sections(given: Mapping[str, Any], names: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Raises UsageError unless a config has a seed and these sections and no others. optional: those it may lack."""
    names = ["seed", *names]
    for name in given:
        if name not in names:
            raise UsageError(f"unknown config section {name!r}{nearest(name, names)}")
    if missing := [name for name in names if name not in given and name not in optional]:
        raise UsageError(f"config lacks the sections {', '.join(missing)}")


def check_keys_of_classifier(given: Mapping[str, Any], network: Any) -> None:
    """Raises UsageError if a classifier's config has keys of a denoiser in sections that both have."""
    if not is_classifier(network):
        return
    if others := [key for key in given.get("evaluate", {}) if key != "every_steps"]:
        raise UsageError(f"unknown config key 'evaluate.{others[0]}'{nearest(others[0], ['every_steps'])}")
    if others := sorted({*given.get("diffusion", {})} - {*CONTINUOUS, *DISCRETE}):
        raise UsageError(f"config.diffusion has {', '.join(others)}, which a classifier does not use: remove it")
