"""Guidance by other labels than the sample's own: composition (Liu et al. 2022, arXiv:2206.01714), negative labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.guidance.cfg import Weight, cfg, conditional, mixed
from cfgjax.diffusion.guidance.conditions import branches
from cfgjax.diffusion.guidance.denoiser import Branches, Combined
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import RealLike, broadcast_left
from cfgjax.diffusion.specs import Spec, number, tree

LABEL_FIELD, ROW_FIELD = {"per_sample": True, "labels": True}, {"per_sample": True, "axes": 1}
NEEDS_LABELS = "states labels; take `on_labels(rule, relabel)` instead, which turns them into conditions"


@tree
@dataclass(frozen=True, repr=False)
class negative(Spec):
    """ε̃ = ε_n + (1+w)(ε_c − ε_n): away from a label n, the same for all samples or one per sample, in place of none.

    label: an int or [B]; with the null label, or None, the rule is `cfg`. With other labels the network needs no null
    label.
    """

    label: Any = field(default=None, metadata=LABEL_FIELD)

    def __post_init__(self) -> None:
        check_label("label", self.label)

    @property
    def uses_null(self) -> bool:
        return self.label is None

    @property
    def at_zero(self) -> conditional:
        return conditional()

    def evaluations(self, logsnrs: Float[np.ndarray, " t"]) -> Int[np.ndarray, " t"]:
        return np.full(len(logsnrs), 2)

    def on_labels(self, relabel: Callable) -> Any:
        """Returns the rule with relabel(label), the condition of a label, in place of the label."""
        return cfg() if self.label is None else against(relabel(self.label))

    def __call__(self, predict: Callable, cond: Any, null: Any, w: Weight) -> Combined:
        if self.label is not None:
            raise UsageError(f"{self!r} {NEEDS_LABELS}")
        return cfg()(predict, cond, null, w)


@tree
@dataclass(frozen=True, repr=False)
class against(Spec):
    """`cfg` away from a condition, a tree like cond, in place of null."""

    condition: Any

    uses_null = False

    @property
    def at_zero(self) -> conditional:
        return conditional()

    def evaluations(self, logsnrs: Float[np.ndarray, " t"]) -> Int[np.ndarray, " t"]:
        return np.full(len(logsnrs), 2)

    def __call__(self, predict: Callable, cond: Any, null: Any, w: Weight) -> Combined:
        return cfg()(predict, cond, self.condition, w)


@tree
@dataclass(frozen=True, repr=False)
class compose(Spec):
    """ε̃ = ε_u + (1+w) [(ε_c − ε_u) + Σ_j r_j (ε_{c_j} − ε_u)]: the sample's own label c together with others.

    In scales, s = 1 + w is that of c, and s r_j that of c_j; a negative r_j leads away from c_j. The strong prediction
    is the result at w = 0, ε_c + Σ_j r_j (ε_{c_j} − ε_u), which other rules use in place of ε_c.

    labels, scales: (c_1, …, c_k) and (r_1, …, r_k), or arrays [B, k]; scales None are 1. All branches are one call of
    predict. Neutral: no other labels, or r = 0.
    """

    labels: Any = field(default=(), metadata=LABEL_FIELD | ROW_FIELD)
    scales: Any = field(default=None, metadata=ROW_FIELD)

    def __post_init__(self) -> None:
        for name in ("labels", "scales"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.scales, tuple):
            object.__setattr__(self, "scales", tuple(number("scales", scale) for scale in self.scales))
        check_label("labels", self.labels)
        counts = [num_labels(values) for values in (self.labels, self.scales)]
        if self.scales is not None and None not in counts and counts[0] != counts[1]:
            raise UsageError(f"{counts[0]} labels and {counts[1]} scales; need one scale for each label")

    def evaluations(self, logsnrs: Float[np.ndarray, " t"]) -> Int[np.ndarray, " t"]:
        return np.full(len(logsnrs), 2 + (num_labels(self.labels) or 0))

    def on_labels(self, relabel: Callable) -> "composed":
        """Returns the rule with relabel(label), the condition of a label, in place of each label."""
        labels = columns(self.labels)
        scales = (1.0,) * len(labels) if self.scales is None else columns(self.scales)
        return composed(tuple(relabel(label) for label in labels), tuple(scales))

    def __call__(self, predict: Callable, cond: Any, null: Any, w: Weight) -> Combined:
        if num_labels(self.labels) != 0:
            raise UsageError(f"{self!r} {NEEDS_LABELS}")
        return cfg()(predict, cond, null, w)


@tree
@dataclass(frozen=True, repr=False)
class composed(Spec):
    """`compose` with conditions, trees like cond, in place of labels. scales: numbers or [B]."""

    conditions: tuple
    scales: tuple

    def evaluations(self, logsnrs: Float[np.ndarray, " t"]) -> Int[np.ndarray, " t"]:
        return np.full(len(logsnrs), 2 + len(self.conditions))

    def __call__(self, predict: Callable, cond: Any, null: Any, w: Weight) -> Combined:
        def all_of(z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."]) -> Branches:
            own, *others, weak = branches(predict, z, logsnr, (cond, *self.conditions, null))

            def add(strong: Prediction, term: tuple) -> Prediction:
                other, scale = term
                factor = broadcast_left(jnp.asarray(scale, z.dtype), z)
                x, eps = strong.x + factor * (other.x - weak.x), strong.eps + factor * (other.eps - weak.eps)
                return Prediction(x, eps, strong.variance)

            strong = reduce(add, zip(others, self.scales, strict=True), own)
            return Branches(strong, weak, mixed(strong, weak, w), w)

        return Combined(all_of)


def num_labels(values: Any) -> int | None:
    """Returns the number of entries of a tuple, or of each row of an array; None if it is unknown."""
    return len(values) if isinstance(values, tuple) else values.shape[-1] if getattr(values, "ndim", 0) else None


def columns(values: Any) -> Sequence[Any]:
    """Returns the entries of a tuple, or the columns of an array [B, k] as [B]; those of an array [k] as numbers."""
    return values if isinstance(values, tuple) else [values[..., j] for j in range(values.shape[-1])]


def check_label(name: str, label: Any) -> None:
    """Raises UsageError if a label is known and is no integer. Its range is that of the model."""
    entries = label if isinstance(label, tuple) else (label,)
    if any(isinstance(entry, float | str | bool | Spec) or (entry is None and label is not None) for entry in entries):
        raise UsageError(f"{name} is {label!r}; need an integer, or one per sample")
