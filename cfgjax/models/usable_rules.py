"""The guidance rules that the network at hand can do, for messages about those that it cannot."""

from typing import Any

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.guidance import (
    PerturbedAttention,
    autoguidance,
    classifier,
    has_weak,
    negative,
    parts,
    rules_without_null,
    uses_null,
)
from cfgjax.models.binding import rule_value
from cfgjax.models.network import check_attention
from cfgjax.nets.perturbation import NoAttention

FLAGS_OF_RULES = {autoguidance: " with --weak", classifier: " with --guide"}  # of the networks that rules need


def usable_rules(model: Any, *, two_predictions: bool = False) -> str:
    """Returns the texts of rules that the network of a `Model` can do, with the flags that they need.

    two_predictions: only those that combine two predictions.
    """
    found = []
    for text in [*(["cfg()"] if model.has_null_label else []), *rules_without_null()]:
        rule = rule_value(text)
        if is_usable(rule, model) and (has_weak(rule) or not two_predictions):
            found.append(text + next((flag for kind, flag in FLAGS_OF_RULES.items() if isinstance(rule, kind)), ""))
    return ", ".join(found)


def is_usable(rule: Any, model: Any) -> bool:
    """Returns whether the network of a `Model` has what a rule needs: attention, labels, images for a classifier."""
    for part in parts(rule):
        if isinstance(part, PerturbedAttention) and not has_attention(model, part.layers):
            return False
        if isinstance(part, negative) and not (model.num_classes > 1 and getattr(model.network, "conditional", True)):
            return False
        if isinstance(part, classifier) and len(model.image_shape) != 3:
            return False
    return True


def check_perturbed(rule: Any, model: Any) -> None:
    """Raises UsageError if a rule perturbs self-attention that the network of a `Model` has not."""
    for part in parts(rule):
        if isinstance(part, PerturbedAttention):
            try:
                check_attention(model.network, model.image_shape, part.layers)
            except NoAttention as e:
                raise UsageError(f"{e}; it can do the rules {usable_rules(model)}, also inside others") from None


def has_attention(model: Any, layers: Any) -> bool:
    """Returns whether the network of a `Model` has self-attention that layers selects."""
    try:
        check_attention(model.network, model.image_shape, layers)
    except UsageError:
        return False
    return True


def has_two_predictions(rule: Any, model: Any) -> bool:
    """Returns whether a rule combines two predictions, and a `Model` has the null label if the rule uses it."""
    return has_weak(rule) and (model.has_null_label or not uses_null(rule))
