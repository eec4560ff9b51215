"""The sections of a config about drawing samples: sample grids, and evaluations."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from cfgjax.base.errors import UsageError, nearest
from cfgjax.runs import sample_options
from cfgjax.runs.sample_options import SampleOptions
from cfgjax.runs.values import Count, Kind, Numbers, Text, integer, one_of, several

MAX_SAMPLES, MAX_BATCH_SIZE = 10**7, 2**16  # of an evaluation
MAX_PER_CELL = 10_000  # samples in a cell of a picture


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """config.sample: the sample grids drawn during training, and the defaults of `Model.sample`.

    every_steps: interval of the grids. labels: their rows. per_cell: samples for each label and column. options: those
    of `SampleOptions` that are given; guidance lists the weights w of the columns.
    """

    every_steps: Count
    labels: Annotated[tuple[int, ...], several(integer(0), "a non-empty tuple of integers of at least 0")]
    per_cell: Annotated[int, integer(1, MAX_PER_CELL)]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    KINDS: ClassVar[dict[str, Kind]] = sample_options.kinds("sample")

    def __post_init__(self) -> None:
        check_options(self, "sample")
        if "guidance" not in self.options:
            raise UsageError("config.sample lacks guidance")

    @property
    def sample_options(self) -> SampleOptions:
        """The options of `Model.sample`, at w = 0."""
        given = {name: value for name, value in self.options.items() if name != "guidance"}
        return sample_options.SampleOptions().with_changes("config.sample", **given)


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """config.evaluate: evaluations by `cfgjax evaluate`, whose flags override it, and during training.

    num_samples: number of samples for each setting. batch_size: maximum number of samples per call of the sampler on
    each device. features: the feature network. classifier: workdir of a classifier run. reference: file of reference
    statistics, by default those of the run's training data. every_steps: interval of evaluations during training, or
    None; these draw every_num_samples samples for each w of every_guidance. options: those of `SampleOptions` that are
    given, one or several values each; None takes the value of config.sample. A classifier has only every_steps, the
    interval at which it is evaluated on held-out examples.
    """

    num_samples: Annotated[int, integer(2)] = 50_000
    batch_size: Count = 256
    features: Annotated[str, one_of("classifier", "inception", "mixture")] = "inception"
    classifier: Text | None = None
    reference: Text | None = None
    every_steps: Count | None = None
    every_num_samples: Annotated[int, integer(2)] = 5_000
    every_guidance: Numbers = (0.0,)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    KINDS: ClassVar[dict[str, Kind]] = sample_options.kinds("evaluate")

    def __post_init__(self) -> None:
        check_options(self, "evaluate")


def check_options(section: SampleSettings | EvaluateSettings, name: str) -> None:
    """Raises UsageError if a section has a key that is neither a field of its own nor an option of sampling."""
    known = [field.name for field in dataclasses.fields(section) if field.name != "options"]
    known += sample_options.fields(f"config.{name}")
    for key in section.options:
        if key not in known:
            raise UsageError(f"unknown config key '{name}.{key}'{nearest(key, known)}")
    for key in ("rule", "sampler", "grid"):
        values = section.options.get(key)
        for value in values if isinstance(values, tuple | list) else [values]:
            check_spec(f"{name}.{key}", value)


def check_spec(key: str, value: Any) -> None:
    """Raises UsageError if the value of a key is the text of no known rule, sampler or grid."""
    from cfgjax.diffusion.grids import GRIDS  # imports jax
    from cfgjax.diffusion.guidance import RULES
    from cfgjax.diffusion.samplers import SAMPLERS
    from cfgjax.diffusion.specs import parse

    if not isinstance(value, str):
        return
    try:
        what = key.rpartition(".")[2]
        parse(value, {"rule": RULES, "sampler": SAMPLERS, "grid": GRIDS}[what], what)
    except UsageError as e:
        raise UsageError(f"{key}: {e}") from None
