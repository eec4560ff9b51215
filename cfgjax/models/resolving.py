"""Options of sampling with values for their defaults, checked against a model."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.guidance import classifier, uses_null
from cfgjax.models.binding import (
    check_binds,
    check_together,
    check_weight_range,
    classifier_scale,
    filled,
    grid_value,
    is_autoguided,
    is_classifier_guided,
    rule_value,
    sampler_value,
)
from cfgjax.models.guide import Guide
from cfgjax.models.model import Model
from cfgjax.models.usable_rules import check_perturbed
from cfgjax.models.weak import WeakRun
from cfgjax.runs.sample_options import SampleOptions, combinations


def resolved_combinations(
    axes: Mapping[str, Sequence[Any]], model: Model, guide: Guide | None = None, weak: WeakRun | None = None
) -> list[SampleOptions]:
    """Returns every combination of the axes as `resolved` options. Raises UsageError for equal values of an axis.

    guide, weak: see `make_settings`.
    """
    readers = {"rule": rule_value, "sampler": sampler_value, "grid": grid_value}
    values = {name: [read(value) for value in axes[name]] for name, read in readers.items()}
    check_weak_given(values["rule"], weak)
    for rule in values["rule"]:
        check_perturbed(rule, model)
    return [resolved(options, model, guide) for options in combinations({**axes, **values})]


def check_weak_given(rules: Sequence[Any], weak: WeakRun | None) -> None:
    """Raises UsageError if a rule needs a weak model and there is none, or if there is one that no rule uses."""
    autoguided = [rule for rule in rules if is_autoguided(rule)]
    if autoguided and weak is None:
        raise UsageError(f"rule {autoguided[0]!r} needs a weak model; give its run with --weak")
    if weak is not None and not autoguided:
        raise UsageError(f"--weak is given, but rule {rules[0]!r} has no weak model; use autoguidance()")


def resolved(options: SampleOptions, model: Model, guide: Guide | None = None) -> SampleOptions:
    """Returns options with values for defaults, checked against a model; equal settings are equal then.

    options: rule, sampler and grid are values. ema is a number in the result, and classifier_scale that of the
    rule if it was None; the scale in the rule is then 1.
    """
    rule, sampler = options.rule, options.sampler
    ema = float(model.settings.ema.default if options.ema is None else options.ema)
    model.settings.ema.check(ema)
    if guide is None and is_classifier_guided(rule):
        raise UsageError(f"rule {rule!r} needs a classifier; give its run with --guide")
    if guide is None and options.classifier_scale:
        raise UsageError(f"classifier_scale is {options.classifier_scale:g} without a classifier; give --guide")
    scale = None
    if guide is not None:
        rule = rule if is_classifier_guided(rule) else classifier(rule)
        scale = float(classifier_scale(rule) if options.classifier_scale is None else options.classifier_scale)
        rule = filled(rule, None, 1.0)
    model.check_guidance([options.guidance * uses_null(rule)])
    check_weight_range(rule, options.guidance)
    logsnrs = model.grid(options.num_steps, options.grid)
    check_together(rule, sampler, model)
    check_binds(rule, model, logsnrs)
    guidance = float(options.guidance)
    changes = dict(guidance=guidance, rule=rule, sampler=sampler, ema=ema, classifier_scale=scale)
    return dataclasses.replace(options, **changes)
