"""Optional attributes of rules, and rules inside rules."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int


def at_zero(rule: Any) -> Any:
    """Returns the rule that gives the same at w = 0 without the null branch, if there is one, or the rule itself."""
    return getattr(rule, "at_zero", rule)


def off(rule: Any) -> Any:
    """Returns the rule without guidance by w, which an interval uses outside of its bounds. By default `at_zero`."""
    return getattr(rule, "off", at_zero(rule))


def keeps_pair(rule: Any) -> bool:
    """Returns whether a rule's result is (1+w) strong − w weak of its branches."""
    return getattr(rule, "keeps_pair", True)


def has_weak(rule: Any) -> bool:
    """Returns whether a rule has a weak prediction, which rules that need one ask for."""
    return getattr(rule, "has_weak", True)


def needs(rule: Any, what: str) -> bool:
    """Returns whether a rule, or a rule in it, has the attribute `what` as True: "needs_eps" or "needs_images"."""
    return any(getattr(part, what, False) for part in parts(rule))


def uses_null(rule: Any) -> bool:
    """Returns whether a rule computes the null branch."""
    return getattr(rule, "uses_null", True)


def shifts_mean(rule: Any) -> bool:
    """Returns whether a rule needs a sampler that has a mean."""
    return getattr(rule, "shifts_mean", False)


def evaluations(rule: Any, logsnrs: Float[np.ndarray, " t"]) -> Int[np.ndarray, " t"]:
    """Returns the number of network evaluations per sample at each λ: 2 where two branches are computed.

    A rule that has no method `evaluations` computes the conditional branch, and the null branch if it uses it.
    """
    if hasattr(rule, "evaluations"):
        return rule.evaluations(logsnrs)
    return np.full(len(logsnrs), 1 + uses_null(rule))


def on_grid(rule: Any, logsnrs: Float[Any, " t"]) -> Any:
    """Returns a rule with everything that it states in steps or fractions of steps turned into λ of a sampler's levels.

    A rule that has such fields has a method `on_grid(logsnrs)`.
    """
    return mapped(rule, lambda part: part.on_grid(logsnrs) if hasattr(part, "on_grid") else part)


def on_labels(rule: Any, relabel: Callable) -> Any:
    """Returns a rule with every label that it states turned into a condition.

    relabel: label, an int or [B] → condition. A rule that has such fields has a method `on_labels(relabel)`.
    """
    return mapped(rule, lambda part: part.on_labels(relabel) if hasattr(part, "on_labels") else part)


def parts(rule: Any) -> Iterator[Any]:
    """Yields a rule and the rules in its fields."""
    yield rule
    if dataclasses.is_dataclass(rule) and not isinstance(rule, type):
        for field in dataclasses.fields(rule):
            yield from parts(getattr(rule, field.name))


def mapped(rule: Any, change: Callable) -> Any:
    """Returns a rule with change(part) in place of each rule in it, from the inside out, and of itself."""
    if not dataclasses.is_dataclass(rule) or isinstance(rule, type):
        return rule
    changed = {f.name: mapped(getattr(rule, f.name), change) for f in dataclasses.fields(rule) if f.init}
    return change(dataclasses.replace(rule, **changed))
