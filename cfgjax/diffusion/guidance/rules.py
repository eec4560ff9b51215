"""The registry of guidance rules: the names that --rule and configs know. A new rule needs a line in RULES."""

import dataclasses
from typing import Any

from cfgjax.diffusion.guidance.apg import apg
from cfgjax.diffusion.guidance.attention_rules import pag, seg
from cfgjax.diffusion.guidance.autoguidance import autoguidance
from cfgjax.diffusion.guidance.cfg import cfg, conditional
from cfgjax.diffusion.guidance.cfg_plus_plus import cfg_plus_plus
from cfgjax.diffusion.guidance.cfg_zero import cfg_zero
from cfgjax.diffusion.guidance.channels import channels
from cfgjax.diffusion.guidance.classifier_rule import classifier
from cfgjax.diffusion.guidance.interval import interval
from cfgjax.diffusion.guidance.labels import compose, negative
from cfgjax.diffusion.guidance.rescale import rescale
from cfgjax.diffusion.guidance.threshold import threshold
from cfgjax.diffusion.guidance.weight_schedules import ramp, table
from cfgjax.diffusion.guidance.wrapper import Wrapper
from cfgjax.diffusion.specs import NESTED, parse, spec

RULES: dict[str, Any] = {
    "cfg": cfg,
    "conditional": conditional,
    "interval": interval,
    "ramp": ramp,
    "table": table,
    "rescale": rescale,
    "threshold": threshold,
    "apg": apg,
    "cfg_plus_plus": cfg_plus_plus,
    "cfg_zero": cfg_zero,
    "channels": channels,
    "compose": compose,
    "negative": negative,
    "classifier": classifier,
    "autoguidance": autoguidance,
    "pag": pag,
    "seg": seg,
}
WITHOUT_NULL = (negative(label=0),)  # rules that use the null label by default, with an argument that replaces it


def rules_without_null() -> list[str]:
    """Returns the texts of the RULES that need no null label. Rules that wrap another one have such a rule inside.

    A `Wrapper` is not listed: it changes what another rule does. A rule that needs an argument is listed with one.
    """
    alone = [f"{name}()" for name, rule in RULES.items() if getattr(rule, "uses_null", True) is False]
    others = {name: rule for name, rule in RULES.items() if not issubclass(rule, Wrapper)}
    wrapping = [name for name, rule in others.items() if NESTED in {field.name for field in dataclasses.fields(rule)}]
    around = [spec(others[name](parse(inner, RULES, "rule"))) for name in wrapping for inner in alone[:1]]
    return [*alone, *map(spec, WITHOUT_NULL), *around]
