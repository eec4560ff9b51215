"""The plan of an evaluation: config.evaluate without the options of sampling, overridden by flags."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from cfgjax.runs.config import call
from cfgjax.runs.options import fields


@dataclasses.dataclass(frozen=True)
class Plan:
    """The keys of config.evaluate that are no `SampleOptions`.

    num_samples: number of samples for each setting. batch_size: maximum number of samples per call of the sampler on
    each device. features: "classifier", "inception" or "mixture". classifier: workdir of a classifier run. reference:
    file of reference statistics, by default those of the run's training data. every_steps: interval of evaluations
    during training, or None; these draw every_num_samples samples for each w of every_guidance.
    """

    num_samples: int = 50_000
    batch_size: int = 256
    features: str = "inception"
    classifier: str | None = None
    reference: str | None = None
    every_steps: int | None = None
    every_num_samples: int = 5_000
    every_guidance: tuple = (0.0,)


def plan_of(config: ConfigDict, **given: Any) -> Plan:
    """Returns the `Plan` of config.evaluate with changes. Raises UsageError for unknown keys of the section."""
    section = {
        name: value for name, value in config.get("evaluate", {}).items() if name not in fields("config.evaluate")
    }
    return call(Plan, "evaluate", section | given)
