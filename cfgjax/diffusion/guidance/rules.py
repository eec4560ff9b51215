"""The registry of guidance rules: the names that --rule and configs know. A new rule needs a line in RULES."""

import dataclasses
from typing import Any

from cfgjax.diffusion.guidance.autoguidance import autoguidance
from cfgjax.diffusion.guidance.cfg import cfg, conditional
from cfgjax.diffusion.guidance.classifier_rule import classifier
from cfgjax.diffusion.specs import NESTED

RULES: dict[str, Any] = {"cfg": cfg, "conditional": conditional, "classifier": classifier, "autoguidance": autoguidance}


def rules_without_null() -> list[str]:
    """Returns the texts of the RULES that need no null label. Rules that wrap another one have such a rule inside."""
    alone = [f"{name}()" for name, rule in RULES.items() if getattr(rule, "uses_null", True) is False]
    wrapping = [name for name, rule in RULES.items() if NESTED in {field.name for field in dataclasses.fields(rule)}]
    return [*alone, *(f"{name}({inner})" for name in wrapping for inner in alone[:1])]
