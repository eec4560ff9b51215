"""What rules that wrap another rule have in common."""

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cfgjax.diffusion.guidance.attributes import (
    at_zero,
    evaluations,
    has_weak,
    keeps_pair,
    off,
    shifts_mean,
    uses_null,
)
from cfgjax.diffusion.guidance.cfg import conditional
from cfgjax.diffusion.specs import Spec


class Around(Spec):
    """Base of rules around the rule in their field `rule`, whose optional attributes they have."""

    rule: Any

    @property
    def uses_null(self) -> bool:
        return uses_null(self.rule)

    @property
    def shifts_mean(self) -> bool:
        return shifts_mean(self.rule)

    @property
    def has_weak(self) -> bool:
        return has_weak(self.rule)

    def evaluations(self, logsnrs: Float[np.ndarray, " t"]) -> Int[np.ndarray, " t"]:
        """Returns the network evaluations per sample at each λ."""
        return evaluations(self.rule, logsnrs)


class Wrapper(Around):
    """Base of rules that change the weight or the result of the rule in their field `rule`, and nothing at w = 0.

    keeps_pair: False for a wrapper whose result is not (1+w) strong − w weak.
    """

    keeps_pair: Any = False

    @property
    def at_zero(self) -> Any:
        zero = at_zero(self.rule)
        if isinstance(zero, conditional):
            return zero
        return replace(self, rule=zero) if has_weak(zero) else self  # type: ignore[type-var]

    @property
    def off(self) -> Any:
        unguided = off(self.rule)
        return replace(self, rule=unguided) if has_weak(unguided) else unguided  # type: ignore[type-var]


class Modulator(Wrapper):
    """Base of wrappers that change the weight of the rule alone."""

    @property
    def keeps_pair(self) -> bool:
        return keeps_pair(self.rule)

    @property
    def at_zero(self) -> Any:
        return at_zero(self.rule)

    @property
    def off(self) -> Any:
        return off(self.rule)
