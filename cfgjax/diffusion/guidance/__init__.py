"""Guidance: rules that turn a predictor into a guided denoiser, and the conditions that they work on.

A rule is a value, called as `rule(predict, cond, null, w) → denoise`:

predict: (z [B, …], logsnr [B], cond) → `Prediction`. cond: any tree of arrays with leading axis B. null: the same tree
with "no condition" in its place; rules with `uses_null` False ignore it. w: the guidance weight, a number or [B],
may be traced, any sign. denoise: (z, logsnr) → `Prediction`, or with memory, see `denoiser`.

One convention throughout: ε̃ = (1+w) ε(z, c) − w ε(z). w = 0 is the conditional model, w = −1 the unconditional one.
Others write a scale s = 1 + w, see `scale_to_weight`. Numbers in a rule are traced: changing one compiles nothing.

A rule that wraps another one takes its denoiser from `bind_rule(self.rule, predict, cond, null, w)`, or from
`bind_pair` if it needs the strong and the weak prediction that the other rule combines. A rule that combines two
predictions returns a denoiser with `branches`, see `denoiser.Combined` and `from_branches`, so that others can wrap it.

Optional attributes of a rule: `uses_null` (default True); `at_zero`, the rule that gives the same result at w = 0
without the null branch (default: the rule itself); `shifts_mean`, whether it needs a sampler that has a mean;
`evaluations(logsnrs) → [T]`, network evaluations per sample at each λ (default: 2 with the null branch, 1 without);
`on_grid(logsnrs) → rule`, for a rule that is stated in steps of the sampler. A field with metadata
{"per_sample": True} may be an array with one entry per sample.
"""

from cfgjax.diffusion.guidance.attributes import at_zero, evaluations, mapped, on_grid, parts, shifts_mean, uses_null
from cfgjax.diffusion.guidance.autoguidance import autoguidance
from cfgjax.diffusion.guidance.cfg import cfg, conditional, mixed, plus_difference, scale_to_weight
from cfgjax.diffusion.guidance.classifier_rule import classifier, label_log_prob, score_function
from cfgjax.diffusion.guidance.conditions import branches, drop_condition
from cfgjax.diffusion.guidance.denoiser import (
    Branches,
    Combined,
    Denoiser,
    bind_pair,
    bind_rule,
    from_branches,
    with_memory,
)
from cfgjax.diffusion.guidance.rules import RULES, rules_without_null

__all__ = [
    "RULES",
    "Branches",
    "Combined",
    "Denoiser",
    "at_zero",
    "autoguidance",
    "bind_pair",
    "bind_rule",
    "branches",
    "cfg",
    "classifier",
    "conditional",
    "drop_condition",
    "evaluations",
    "from_branches",
    "label_log_prob",
    "mapped",
    "mixed",
    "on_grid",
    "parts",
    "plus_difference",
    "rules_without_null",
    "scale_to_weight",
    "score_function",
    "shifts_mean",
    "uses_null",
    "with_memory",
]
