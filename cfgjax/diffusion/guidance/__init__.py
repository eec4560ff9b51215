"""Guidance: rules that turn a predictor into a guided denoiser, and the conditions that they work on.

A rule is a value, called as `rule(predict, cond, null, w) → denoise`:

predict: (z [B, …], logsnr [B], cond) → `Prediction`. cond: any tree of arrays with leading axis B. null: the same tree
with "no condition" in its place; rules with `uses_null` False ignore it. w: the guidance weight, a number or [B],
may be traced, any sign. denoise: (z, logsnr) → `Prediction`, or with memory, see `denoiser`.

One convention throughout: ε̃ = (1+w) ε(z, c) − w ε(z). w = 0 is the conditional model, w = −1 the unconditional one.
Others write a scale s = 1 + w, see `scale_to_weight`. Numbers in a rule are traced: changing one compiles nothing.

A rule that wraps another one takes its denoiser from `bind_rule(self.rule, predict, cond, null, w)`, or from
`bind_pair` if it needs the strong and the weak prediction that the other rule combines, or from `bind_mixed` if it
combines them itself, in another way. A rule that combines two predictions returns a denoiser with `branches`, see
`denoiser.Combined` and `from_branches`, so that others can wrap it. `Wrapper` has the attributes that they share.

Optional attributes of a rule:

- `uses_null` (default True);
- `at_zero`, the rule that gives the same result at w = 0 without the null branch (default: the rule itself);
- `off`, the rule outside of an interval (default: `at_zero`);
- `has_weak`, whether it has a weak prediction (default True);
- `keeps_pair`, whether its result is (1+w) strong − w weak (default True);
- `shifts_mean`, `needs_eps`, `needs_images` (default False): whether it needs a sampler that has a mean, a sampler that
  renoises with ε̃, or images;
- `weight_range`, the smallest and the largest w that it is for (default: all w), which models check;
- `evaluations(logsnrs) → [T]`, network evaluations per sample at each λ (default: 2 with the null branch, 1 without);
- `on_grid(logsnrs) → rule`, for a rule that is given in steps of the sampler, and `on_labels(relabel) → rule`, for one
  that states labels. Whoever binds such a rule first calls the functions of these names, as `Model` does.

Metadata of a field: {"per_sample": True}, it may be an array with one row per sample; "axes", the number of axes of its
value for all samples (default 0); {"labels": True}, it has labels, whose range the model checks.
"""

from cfgjax.diffusion.guidance.apg import apg
from cfgjax.diffusion.guidance.attention_rules import PerturbedAttention, pag, seg
from cfgjax.diffusion.guidance.attributes import (
    at_zero,
    evaluations,
    has_weak,
    keeps_pair,
    mapped,
    needs,
    off,
    on_grid,
    on_labels,
    parts,
    shifts_mean,
    uses_null,
)
from cfgjax.diffusion.guidance.autoguidance import autoguidance
from cfgjax.diffusion.guidance.cfg import cfg, conditional, mixed, plus_difference, scale_to_weight
from cfgjax.diffusion.guidance.cfg_plus_plus import cfg_plus_plus
from cfgjax.diffusion.guidance.cfg_zero import cfg_zero
from cfgjax.diffusion.guidance.channels import channels
from cfgjax.diffusion.guidance.classifier_rule import classifier, label_log_prob, score_function
from cfgjax.diffusion.guidance.conditions import branches, drop_condition
from cfgjax.diffusion.guidance.denoiser import (
    Branches,
    Combined,
    Denoiser,
    bind_mixed,
    bind_pair,
    bind_rule,
    from_branches,
    with_guided,
    with_memory,
)
from cfgjax.diffusion.guidance.interval import interval
from cfgjax.diffusion.guidance.labels import against, compose, composed, negative
from cfgjax.diffusion.guidance.rescale import rescale
from cfgjax.diffusion.guidance.rules import RULES, rules_without_null
from cfgjax.diffusion.guidance.threshold import threshold
from cfgjax.diffusion.guidance.weight_schedules import ramp, table
from cfgjax.diffusion.guidance.wrapper import Modulator, Wrapper

__all__ = [
    "RULES",
    "Branches",
    "Combined",
    "Denoiser",
    "Modulator",
    "PerturbedAttention",
    "Wrapper",
    "against",
    "apg",
    "at_zero",
    "autoguidance",
    "bind_mixed",
    "bind_pair",
    "bind_rule",
    "branches",
    "cfg",
    "cfg_plus_plus",
    "cfg_zero",
    "channels",
    "classifier",
    "compose",
    "composed",
    "conditional",
    "drop_condition",
    "evaluations",
    "from_branches",
    "has_weak",
    "interval",
    "keeps_pair",
    "label_log_prob",
    "mapped",
    "mixed",
    "needs",
    "negative",
    "off",
    "on_grid",
    "on_labels",
    "pag",
    "parts",
    "plus_difference",
    "ramp",
    "rescale",
    "rules_without_null",
    "scale_to_weight",
    "score_function",
    "seg",
    "shifts_mean",
    "table",
    "threshold",
    "uses_null",
    "with_guided",
    "with_memory",
]
