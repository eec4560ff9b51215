"""The sections of a config about drawing samples: sample grids, and evaluations."""

import dataclasses
from typing import Annotated

from cfgjax.base.errors import choose
from cfgjax.runs.values import Count, Levels, Numbers, Share, Text, integer, one_of, several

MAX_PER_CELL = 10_000  # samples in a cell of a picture
LABEL_POLICIES = ("balanced", "random")  # the keys of `LABELS`, which has their functions
PAPER_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 2.0, 3.0, 4.0)  # of CFG's tables


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """config.sample: the sample grids drawn during training, and the defaults of `Model.sample`.

    every_steps: interval of the grids. labels, guidance: their rows, and the weights w of their columns. per_cell:
    samples for each label and w. num_steps: network calls T, or what `levels.Discrete.grid` takes. sampler: its name.
    v, eta: noise of ancestral and of ddim; v is None for a learned variance.
    """

    every_steps: Count
    labels: Annotated[tuple[int, ...], several(integer(0), "a non-empty tuple of integers of at least 0")]
    guidance: Numbers
    per_cell: Annotated[int, integer(1, MAX_PER_CELL)]
    num_steps: Annotated[int, integer(2)] | Text
    sampler: Text
    v: Share | None
    eta: Share

    def __post_init__(self) -> None:
        from cfgjax.diffusion.samplers import SAMPLERS  # imports jax

        choose("sampler", self.sampler, SAMPLERS)


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """config.evaluate: evaluations by `cfgjax evaluate`, whose flags override it, and during training.

    guidance: weights w. num_samples: number of samples for each. num_steps: network calls T. batch_size: maximum number
    of samples per call of the sampler on each device. label_policy: one of LABEL_POLICIES. features: the feature
    network. classifier: workdir of a classifier run. reference: file of reference statistics, by default those of the
    run's training data. every_steps: interval of evaluations during training, or None; these draw every_num_samples
    samples for each w of every_guidance. A classifier has only every_steps, the interval at which it is evaluated on
    held-out examples.
    """

    guidance: Numbers = PAPER_WEIGHTS
    num_samples: Annotated[int, integer(2)] = 50_000
    num_steps: Levels = 256
    batch_size: Count = 256
    label_policy: Text = "balanced"
    features: Annotated[str, one_of("classifier", "inception", "mixture")] = "inception"
    classifier: Text | None = None
    reference: Text | None = None
    every_steps: Count | None = None
    every_num_samples: Annotated[int, integer(2)] = 5_000
    every_guidance: Numbers = (0.0,)

    def __post_init__(self) -> None:
        choose("label policy", self.label_policy, dict.fromkeys(LABEL_POLICIES))
