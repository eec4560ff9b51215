"""The number of network evaluations that a sample costs."""

from typing import Any

import numpy as np
from jaxtyping import Float

from cfgjax.diffusion.guidance import evaluations, on_grid
from cfgjax.diffusion.samplers import evaluated_levels
from cfgjax.models.groups import rule_at


def network_evaluations(rule: Any, sampler: Any, logsnrs: Float[np.ndarray, " t"], w: float) -> int:
    """Returns the evaluations of the diffusion network for one sample, the branches of the rule at each level.

    Branches that a rule skips, such as the null branch outside of an interval or at w = 0, are not counted. logsnrs:
    the levels of the sampler.
    """
    rule = on_grid(rule_at(w, rule, sampler), logsnrs)
    return int(evaluations(rule, evaluated_levels(sampler, logsnrs)).sum())
