"""Binds rules, samplers and grids to a model: from text, with the networks they need, as arguments of a program."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from cfgjax.base.errors import UsageError
from cfgjax.data.sources.registry import check_labels
from cfgjax.diffusion.grids import GRIDS
from cfgjax.diffusion.guidance import (
    RULES,
    autoguidance,
    bind_rule,
    classifier,
    keeps_pair,
    mapped,
    needs,
    on_grid,
    on_labels,
    parts,
    shifts_mean,
)
from cfgjax.diffusion.guidance.wrapper import Modulator
from cfgjax.diffusion.levels import Continuous, Discrete
from cfgjax.diffusion.samplers import SAMPLERS, Evaluation
from cfgjax.diffusion.specs import parse, tree
from cfgjax.distributed.sharding import place_global
from cfgjax.models import arguments
from cfgjax.models.arguments import check_num_steps
from cfgjax.models.network import Condition, null_condition, with_label
from cfgjax.runs.sample_options import SampleOptions
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


def grid_value(grid: Any) -> Any:
    """Returns a grid, given as a value or as text."""
    if isinstance(grid, str):
        return parse(grid, GRIDS, "grid")
    if not callable(grid):
        raise UsageError(f"grid is {grid!r}; need a grid, or its text such as 'edm(rho=7)'")
    return grid


def sampling_grid(levels: Continuous | Discrete, options: SampleOptions) -> Float[np.ndarray, " t"]:
    """Returns λ of a sampler's levels, increasing, float32: the grid of the options with their num_steps.

    Raises UsageError for fewer than 2 levels, and for a spacing or a grid that the process does not have.
    """
    num_steps, grid = options.num_steps, grid_value(options.grid)
    if not isinstance(num_steps, str):
        check_num_steps(num_steps)
    try:
        logsnrs = np.asarray(grid(levels, num_steps)).astype(np.float32)
    except ValueError as e:
        raise UsageError(str(e)) from None
    if len(logsnrs) < 2:
        raise UsageError(f"num_steps is {num_steps}; need at least 2 steps")
    if not np.all(np.diff(logsnrs) > 0):
        raise UsageError(f"num_steps is {num_steps}; λ of the grid {grid!r} does not increase in float32: use fewer")
    return logsnrs


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


def check_together(rule: Any, sampler: Any, model: Any) -> None:
    """Raises UsageError unless the sampler has what the rule needs, and the `Model` what both of them need."""
    if shifts_mean(rule) and not getattr(sampler, "takes_shift", False):
        raise UsageError(f"rule {rule!r} is for sampler ancestral, not {sampler!r}; use form='eps'")
    if needs(rule, "needs_eps") and not getattr(sampler, "uses_eps", False):
        raise UsageError(f"rule {rule!r} is for samplers that renoise with ε̃, such as ddim(), not {sampler!r}")
    if needs(rule, "needs_images") and not model.is_image:
        raise UsageError(f"rule {rule!r} is for images in [-1, 1]; the data of this model are points or latents")
    if getattr(sampler, "needs_branches", False):
        for part in parts(rule):
            if not keeps_pair(part) or isinstance(part, Modulator):
                what = f"needs ε̃ = (1+w) ε_c − w ε_u with one w at all levels, which {type(part).__name__} changes"
                raise UsageError(f"sampler {sampler!r} {what}; use a rule such as cfg()")
    for part, field in label_fields(rule):
        given = np.ravel(np.asarray(getattr(part, field.name)))
        if given.size and getattr(part, field.name) is not None:
            check_labels(given, model.num_classes + model.has_null_label, f"{type(part).__name__}: {field.name}")
    if getattr(sampler, "needs_variance", False) and not model.learned_variance:
        needed = "a network with a learned variance; give v, such as ancestral(v=0.3)"
        raise UsageError(f"sampler {sampler!r} needs {needed}")


def check_binds(rule: Any, model: Any, logsnrs: Float[np.ndarray, " t"]) -> None:
    """Raises UsageError if a rule cannot be made of the rules in it, or for this `Model`. Computes nothing.

    A guide or a weak model that the rule does not have yet is taken to be there. logsnrs: the levels of a sampler.
    """

    def never(*args: Any) -> Any:
        raise AssertionError("a rule evaluates a network before it is given a sample")

    cond = {"label": jnp.zeros(1, jnp.int32)}
    cond |= {name: jnp.zeros((1, *like.shape[1:]), like.dtype) for name, like in model.own_inputs.items()}
    whole = translated(with_weak(filled(rule, never, None), never), jnp.asarray(logsnrs), cond)
    null = null_condition(model.network, cond, model.num_classes)
    bind_rule(whole, model.bind(model.params), cond, null, jnp.ones(1))


def check_weight_range(rule: Any, weights: ArrayLike) -> None:
    """Raises UsageError unless every w is in the `weight_range` of the rule and of the rules in it."""
    for part in (part for part in parts(rule) if hasattr(part, "weight_range")):
        least, most = part.weight_range
        for w in np.unique(weights):
            if not least <= w <= most:
                needed = f"need w in [{least:g}, {most:g}], a scale 1 + w in [{1 + least:g}, {1 + most:g}]"
                raise UsageError(f"guidance w is {w:g} for rule {part!r}; {needed}")


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
            raise UsageError(f"rule {rule!r} has no {field.name}; give it one, {field.name}=…")
        if hasattr(value, "on") and hasattr(value, "check"):
            value.check(settings)
            return value.on(mesh)
        return place_global(mesh, value) if has_rows(field, value) else value

    return replaced(rule, place)


def label_fields(rule: Any) -> Iterator[tuple[Any, dataclasses.Field]]:
    """Yields (rule, field) of the fields with labels, of a rule and of the rules in it."""
    for part in parts(rule):
        if dataclasses.is_dataclass(part):
            yield from ((part, field) for field in dataclasses.fields(part) if field.metadata.get("labels", False))


def has_rows(field: dataclasses.Field, value: Any) -> bool:
    """Returns whether the value of a rule's field has a row for each sample."""
    return field.metadata.get("per_sample", False) and np.ndim(value) > field.metadata.get("axes", 0)


def rule_rows(rule: Any, index: np.ndarray) -> Any:
    """Returns a rule with the rows of index of its numbers per sample."""
    return replaced(rule, lambda field, value: np.asarray(value)[index] if has_rows(field, value) else value)


def with_checked_rows(rule: Any, length: int) -> Any:
    """Returns a rule with arrays in place of its values per sample. Raises UsageError unless they have length rows."""

    def check(field: dataclasses.Field, value: Any) -> Any:
        plain = not {"axes", "labels"} & set(field.metadata)
        if plain and value is not None and field.metadata.get("per_sample", False):
            checked = arguments.per_label(field.name, value, length)
            return checked if np.ndim(value) else value
        if not has_rows(field, value):
            return value
        shape, axes = np.shape(value), 1 + field.metadata.get("axes", 0)
        if len(shape) != axes or shape[0] != length:
            raise UsageError(f"{field.name} has shape {shape} for {length} labels; need one row per label")
        return np.asarray(value)

    return replaced(rule, check)


def translated(rule: Any, logsnrs: Float[Array, " t"], cond: Condition) -> Any:
    """Returns a rule with its steps turned into λ of a grid, and its labels into conditions like cond."""
    return on_labels(on_grid(rule, logsnrs), functools.partial(with_label, cond))


class Trajectory(NamedTuple):
    """The path of samples from noise: λ [T] of the levels, and z and x̃ at each of them, [T, N, …].

    ess: effective sample size [T, N] of each sample's group, for samplers that draw groups (`tilted`); else None.
    """

    logsnr: np.ndarray
    z: np.ndarray
    x: np.ndarray
    ess: np.ndarray | None = None


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
