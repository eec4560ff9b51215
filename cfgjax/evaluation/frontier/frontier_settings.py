"""The settings of a frontier: as values, as columns of a table, and as identities of stored samples."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cfgjax.diffusion.guidance import cfg, classifier
from cfgjax.diffusion.samplers import ancestral, ddim
from cfgjax.diffusion.specs import spec
from cfgjax.models.binding import (
    is_autoguided,
)
from cfgjax.models.guide import Guide
from cfgjax.models.model import Model
from cfgjax.models.resolving import resolved_combinations
from cfgjax.models.weak import WeakRun, weak_text
from cfgjax.runs.sample_options import SampleOptions, as_dict


@dataclasses.dataclass(frozen=True)
class Setting:
    """Everything that a sample depends on, besides the model and its index.

    options: rule (without its guide), sampler and grid are values; ema is a number; classifier_scale is that of the
    rule's `classifier`, whose own scale has no effect. scores: "learned", or "exact" for those of a mixture.
    classifier: digest of the classifier that guides, or None. weak: `WeakRun.identity` of the weak model of a rule with
    `autoguidance`, or None.
    """

    options: SampleOptions
    scores: str = "learned"
    classifier: str | None = None
    weak: dict[str, Any] | None = None

    @property
    def row(self) -> dict[str, Any]:
        """Returns the setting as the first columns of a table."""
        values = {name: as_text(value) for name, value in as_dict(self.options).items()}
        return {
            "guidance_weight": values.pop("guidance"),
            **values,
            "scores": self.scores,
            "classifier": self.classifier,
            "weak": weak_text(self.weak),
        }

    @property
    def identity(self) -> dict[str, Any]:
        """Returns the setting as JSON values, without options at their defaults: a new option changes no identity.

        The first options are always there, in the form in which they were first stored.
        """
        options, default = self.options, type(self.options)()
        new = {name: as_text(value) for name, value in as_dict(options).items() if name not in STORED}
        found = {name: text for name, text in new.items() if text != getattr(default, name)}
        found |= {name: getattr(options, name) for name in ("num_steps", "ema", "seed", "label_policy")}
        found |= {"guidance_weight": options.guidance, "scores": self.scores, "classifier": self.classifier}
        rule, form = options.rule, None
        if isinstance(rule, classifier):
            rule, form = rule.rule, rule.form
        if rule != cfg():
            found["rule"] = spec(rule)
        if self.weak is not None:
            found["weak"] = self.weak
        found |= {"classifier_form": form, "classifier_scale": options.classifier_scale or 0.0}
        return found | stored_sampler(options.sampler)


STORED = ("guidance", "num_steps", "sampler", "ema", "seed", "label_policy", "rule", "classifier_scale")


def stored_sampler(sampler: Any) -> dict[str, Any]:
    """Returns {"sampler", "v", "eta"} as they are stored: the text of a sampler that has other options than these."""
    noise = {name: getattr(sampler, name, None) for name in ("v", "eta")}
    noise = {name: value if value is None else float(f"{np.float32(value):.7g}") for name, value in noise.items()}
    given = {name: value for name, value in noise.items() if value is not None}
    plain = type(sampler) in (ancestral, ddim) and type(sampler)(**given) == sampler
    return {"sampler": type(sampler).__name__, **noise} if plain else {"sampler": spec(sampler), "v": None, "eta": None}


def as_text(value: Any) -> Any:
    """Returns the text of a rule, sampler or grid, and any other option as it is."""
    return spec(value) if dataclasses.is_dataclass(value) else value


def make_settings(
    axes: Mapping[str, Sequence[Any]], model: Model, guide: Guide | None = None, weak: WeakRun | None = None
) -> list[Setting]:
    """Returns the checked settings of every combination of the axes, in order of work.

    axes: {option: values}, see `sample_options.axes`. For a run on a mixture, those of exact scores follow. guide: the
    `Guide` of the rules' `classifier`; rules without one are wrapped in one. weak: the weak model of the rules'
    `autoguidance`; these have no settings of exact scores.
    """
    digest = None if guide is None else guide.digest
    identity = None if weak is None else weak.identity
    settings = [
        Setting(options, classifier=digest, weak=identity if is_autoguided(options.rule) else None)
        for options in resolved_combinations(axes, model, guide, weak)
    ]
    if model.settings.data.source == "mixture":
        first = settings[0].options.ema  # EMA has no effect on exact scores
        exact = [setting for setting in settings if setting.options.ema == first and setting.weak is None]
        settings += [dataclasses.replace(setting, scores="exact") for setting in exact]
    return settings
