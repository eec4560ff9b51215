"""Binds rules and samplers to a model: from text, with the networks they need, as arguments of a compiled program."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.guidance import RULES, autoguidance, classifier, mapped, parts, shifts_mean
from cfgjax.diffusion.samplers import SAMPLERS, Evaluation
from cfgjax.diffusion.specs import parse, tree
from cfgjax.distributed.sharding import place_global
from cfgjax.runs.settings import Settings

RuleNumber = int | float | np.ndarray | np.generic | jax.Array


def rule_value(rule: Any) -> Any:
    """Returns a guidance rule, given as a value or as text."""
    if isinstance(rule, str):
        return parse(rule, RULES, "rule")
    if not callable(rule):
        raise UsageError(f"rule is {rule!r}; need a guidance rule, or its text such as 'cfg()'")
    return rule


def sampler_value(sampler: Any) -> Any:
    """Returns a sampler, given as a value or as text."""
    if isinstance(sampler, str):
        return parse(sampler, SAMPLERS, "sampler")
    if not hasattr(sampler, "step"):
        raise UsageError(f"sampler is {sampler!r}; need a sampler, or its text such as 'ddim(eta=0.5)'")
    return sampler


def with_guide(rule: Any, guide: Any, scale: Any = None) -> Any:
    """Returns a rule whose `classifier` has this guide; the rule is wrapped in one if it contains none.

    scale: of the guide's gradient; None leaves that of the rule.
    """
    if guide is None:
        return rule
    return filled(rule if is_classifier_guided(rule) else classifier(rule), guide, scale)


def filled(rule: Any, guide: Any, scale: Any) -> Any:
    """Returns a rule with a guide in every `classifier` in it, and with this scale unless it is None."""
    changes = {"guide": guide} | ({} if scale is None else {"scale": scale})
    return mapped(rule, lambda part: dataclasses.replace(part, **changes) if isinstance(part, classifier) else part)


def is_classifier_guided(rule: Any) -> bool:
    """Returns whether a rule is or contains a `classifier`."""
    return any(isinstance(part, classifier) for part in parts(rule))


def classifier_scale(rule: Any) -> Any:
    """Returns the scale of the first `classifier` in a rule, or None if there is none."""
    return next((part.scale for part in parts(rule) if isinstance(part, classifier)), None)


def with_weak(rule: Any, weak: Any) -> Any:
    """Returns a rule with this weak model in every `autoguidance` in it; None leaves the rule as it is."""
    if weak is None:
        return rule
    return mapped(rule, lambda part: dataclasses.replace(part, weak=weak) if isinstance(part, autoguidance) else part)


def is_autoguided(rule: Any) -> bool:
    """Returns whether a rule is or contains an `autoguidance`."""
    return any(isinstance(part, autoguidance) for part in parts(rule))


def check_together(rule: Any, sampler: Any, learned_variance: bool) -> None:
    """Raises UsageError unless the sampler has what the rule needs, and the network what the sampler needs."""
    if shifts_mean(rule) and not getattr(sampler, "takes_shift", False):
        raise UsageError(f"rule {rule!r} is for sampler ancestral, not {sampler!r}; use form='eps'")
    if getattr(sampler, "needs_variance", False) and not learned_variance:
        needed = "a network with a learned variance; give v, such as ancestral(v=0.3)"
        raise UsageError(f"sampler {sampler!r} needs {needed}")


def replaced(rule: Any, change: Callable) -> Any:
    """Returns a rule with change(field, value) in place of each of its fields, and of those of rules in it."""

    def with_changed_fields(part: Any) -> Any:
        values = {f.name: change(f, getattr(part, f.name)) for f in dataclasses.fields(part) if f.init}
        return dataclasses.replace(part, **values)

    return mapped(rule, with_changed_fields)


def on_mesh(rule: Any, settings: Settings, mesh: Mesh) -> Any:
    """Returns a rule with its networks and its numbers per sample in their places on the mesh.

    Raises UsageError if a network is missing or does not fit a model with these settings.
    """

    def place(field: dataclasses.Field, value: Any) -> Any:
        if value is None and not field.metadata.get("text", True):
            raise UsageError(f"the rule {rule!r} has no {field.name}")
        if hasattr(value, "on") and hasattr(value, "check"):
            value.check(settings)
            return value.on(mesh)
        return place_global(mesh, value) if per_sample(field) and np.ndim(value) else value

    return replaced(rule, place)


def per_sample(field: Any) -> bool:
    """Returns whether a field of a rule may have a number for each sample."""
    return field.metadata.get("per_sample", False)


def rule_rows(rule: Any, index: np.ndarray) -> Any:
    """Returns a rule with the rows of index of its numbers per sample."""
    return replaced(rule, lambda field, value: value[index] if per_sample(field) and np.ndim(value) else value)


class Trajectory(NamedTuple):
    """What a sampler saw: λ [T] of its levels, and z and x̃ at each of them, [T, N, …]."""

    logsnr: np.ndarray
    z: np.ndarray
    x: np.ndarray


def z_and_x(evaluation: Evaluation) -> tuple[Float[jax.Array, "b ..."], Float[jax.Array, "b ..."]]:
    """Returns what a `Trajectory` has of a level."""
    return evaluation.z, evaluation.prediction.x


@tree
@dataclasses.dataclass(frozen=True)
class Argument:
    """A rule or sampler as an argument of a program: its numbers and arrays are traced, all else is static."""

    numbers: list
    rest: tuple = dataclasses.field(metadata={"static": True})

    @property
    def value(self) -> Any:
        structure, others, _ = self.rest
        return structure.unflatten([o if n is None else n for n, o in zip(self.numbers, others, strict=True)])


def as_argument(value: Any) -> Argument:
    """Returns a rule or sampler as an `Argument`. What is not registered as a tree is one static leaf."""
    leaves, structure = jax.tree.flatten(value)
    numeric = [isinstance(leaf, RuleNumber) and not isinstance(leaf, bool) for leaf in leaves]
    numbers = [leaf if traced else None for leaf, traced in zip(leaves, numeric, strict=True)]
    others = tuple(None if traced else leaf for leaf, traced in zip(leaves, numeric, strict=True))
    return Argument(numbers, (structure, others, classes(value)))


def classes(value: Any) -> tuple:
    """Returns the classes of a rule and of the rules in it: structures registered by jax do not tell them apart."""
    if not dataclasses.is_dataclass(value):
        return ()
    return type(value), *(classes(getattr(value, field.name)) for field in dataclasses.fields(value))
