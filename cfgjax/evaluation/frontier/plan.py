"""What an evaluation is to measure: config.evaluate, and the flags of `cfgjax evaluate` over it."""

import dataclasses

from cfgjax.base.errors import choose
from cfgjax.evaluation.frontier.generate import LABELS
from cfgjax.models.arguments import check_num_steps

PAPER_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 2.0, 3.0, 4.0)  # of CFG's tables


@dataclasses.dataclass(frozen=True)
class Plan:
    """config.evaluate.

    guidance: weights w. num_samples: N of each. num_steps: network calls T. batch_size: samples per call of the
    sampler on each device, at most. label_policy: "balanced" or "random". features: "classifier", "inception" or
    "mixture". classifier: workdir of a classifier run. reference: file of reference statistics; by default those of
    the run's own training data. every_steps: cadence while training, None for never; then of every_num_samples samples
    of each w of every_guidance.
    """

    guidance: tuple = PAPER_WEIGHTS
    num_samples: int = 50_000
    num_steps: int = 256
    batch_size: int = 256
    label_policy: str = "balanced"
    features: str = "inception"
    classifier: str | None = None
    reference: str | None = None
    every_steps: int | None = None
    every_num_samples: int = 5_000
    every_guidance: tuple = (0.0,)

    def __post_init__(self):
        check_num_steps(self.num_steps)
        choose("label policy", self.label_policy, LABELS)
