"""Rules and samplers of a model's sampling: from values, from text, and from the separate options v, eta and form."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.guidance import RULES, cfg, classifier, conditional, shifts_mean
from cfgjax.diffusion.samplers import SAMPLERS
from cfgjax.diffusion.specs import check_choice, parse, tree

Number = int | float | np.ndarray | np.generic | jax.Array


def rule_value(rule: Any) -> Any:
    """Returns a guidance rule, given as a value, as text, or None."""
    if isinstance(rule, str):
        return parse(rule, RULES, "rule")
    if rule is not None and not callable(rule):
        raise UsageError(f"rule is {rule!r}; need a guidance rule, or its text such as 'cfg()'")
    return rule


def sampler_value(sampler: Any, defaults: Any, v: float | None = None, eta: float | None = None) -> Any:
    """Returns a sampler, given as a value, as text, or as a name alone whose option is v or eta.

    defaults: config.sample, which has what is None.
    """
    sampler = defaults.sampler if sampler is None else sampler
    given = {"v": v, "eta": eta}
    if not isinstance(sampler, str) or sampler.strip() not in SAMPLERS:
        if present := [name for name, value in given.items() if value is not None]:
            raise UsageError(f"{present[0]} is given besides sampler {sampler}; write it into the sampler")
        if isinstance(sampler, str):
            return parse(sampler, SAMPLERS, "sampler")
        if not hasattr(sampler, "step"):
            raise UsageError(f"sampler is {sampler!r}; need a sampler, or its text such as 'ddim(eta=0.5)'")
        return sampler
    takes = SAMPLERS[sampler.strip()].__dataclass_fields__
    for name, value in given.items():
        if value is not None and name not in takes:
            raise UsageError(f"sampler {sampler} takes no {name}")
    return named_sampler(
        sampler.strip(), **{n: getattr(defaults, n) if value is None else value for n, value in given.items()}
    )


def named_sampler(name: str, **noise: float | None) -> Any:
    """Returns the sampler of this name, with the one of v and eta that it takes."""
    make = SAMPLERS[name]
    return make(**{field: noise[field] for field in make.__dataclass_fields__})


def noise_options(sampler: Any) -> dict[str, float]:
    """Returns {"v": …} or {"eta": …} of a sampler, rounded to what float32 tells apart; nothing for a learned v."""
    values = {name: getattr(sampler, name, None) for name in ("v", "eta")}
    return {name: float(f"{np.float32(value):.7g}") for name, value in values.items() if value is not None}


def guided_rule(guided: bool, guide: Any = None, scale: Any = 0.0, form: str = "eps") -> Any:
    """Returns the paper's rule, without the null branch if not guided, with the gradient of a guide if there is one."""
    rule = cfg() if guided else conditional()
    if guide is None:
        return rule
    check_choice("classifier form", form, classifier.FORMS)
    return classifier(rule, scale, form, guide)


def check_together(rule: Any, sampler: Any, learned_variance: bool) -> None:
    """Raises UsageError unless the sampler has what the rule needs, and the network what the sampler needs."""
    if shifts_mean(rule) and not getattr(sampler, "takes_shift", False):
        raise UsageError(f"rule {rule!r} is for sampler ancestral, not {sampler!r}: take form eps")
    if getattr(sampler, "needs_variance", False) and not learned_variance:
        raise UsageError("v is None, in config.sample too, and the network has no learned variance; give --v")


def replaced(value: Any, change: Callable) -> Any:
    """Returns a rule with change(field, value) in place of each of its fields, and of those of rules in it."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = [field for field in dataclasses.fields(value) if field.init]
    return dataclasses.replace(
        value, **{field.name: replaced(change(field, getattr(value, field.name)), change) for field in fields}
    )


def per_sample(field: Any) -> bool:
    """Returns whether a field of a rule may have a number for each sample."""
    return field.metadata.get("per_sample", False)


def rows_of(rule: Any, index: np.ndarray) -> Any:
    """Returns a rule with the rows of index of its numbers per sample."""
    return replaced(rule, lambda field, value: value[index] if per_sample(field) and np.ndim(value) else value)


class Trajectory(NamedTuple):
    """What a sampler saw: λ [T] of its levels, and z and x̃ at each of them, [T, N, …]."""

    logsnr: np.ndarray
    z: np.ndarray
    x: np.ndarray


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
    numeric = [isinstance(leaf, Number) and not isinstance(leaf, bool) for leaf in leaves]
    numbers = [leaf if traced else None for leaf, traced in zip(leaves, numeric, strict=True)]
    others = tuple(None if traced else leaf for leaf, traced in zip(leaves, numeric, strict=True))
    return Argument(numbers, (structure, others, classes(value)))


def classes(value: Any) -> tuple:
    """Returns the classes of a rule and of the rules in it: structures registered by jax do not tell them apart."""
    if not dataclasses.is_dataclass(value):
        return ()
    return type(value), *(classes(getattr(value, field.name)) for field in dataclasses.fields(value))
