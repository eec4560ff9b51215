"""Denoisers: what a guidance rule returns.

A denoiser without memory is a function `denoise(z, logsnr) → Prediction`. One with memory has `denoise.init(z) →
memory` and is called as `denoise(z, logsnr, memory) → (Prediction, memory)`; the memory is any tree of arrays, starts
anew for each sample, is updated once per level, and has the same structure, shapes and dtypes at every level.
Optionally `denoise.shift(z, mean, logsnr, logsnr_next)` is added, times the reverse variance Σ, to the mean of a
sampler that has one, and `denoise.branches` has the arguments of `denoise` and returns `Branches` in place of the
`Prediction`. Rules that change how a strong and a weak prediction are combined take them from there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.contracts import ContractError, check_arrays, check_prediction, check_same, described
from cfgjax.diffusion.guidance.attributes import keeps_pair, parts
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import RealLike


class Branches(NamedTuple):
    """The two predictions that a rule combines at one level, and its result.

    strong: of the conditional model. weak: the prediction that guidance moves away from, such as that of the null
    branch; where guidance is switched off, the strong one itself. guided: the result of the rule. w: the weight at
    this level, a number or [B].
    """

    strong: Prediction
    weak: Prediction
    guided: Prediction
    w: Float[RealLike, "..."]


@dataclass(frozen=True)
class Combined:
    """A denoiser without memory that combines two predictions, defined by branches: (z, logsnr) → `Branches`."""

    branches: Callable

    def __call__(self, z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."]) -> Prediction:
        """Returns the guided prediction."""
        return self.branches(z, logsnr).guided


@dataclass(frozen=True)
class Denoiser:
    """A denoiser with memory and, optionally, a shift of the mean.

    apply: (z, logsnr, memory) → (Prediction, memory). init: z → memory. shift: None for no shift. branches: (z, logsnr,
    memory) → (`Branches`, memory), or None for a rule that does not combine two predictions.
    """

    apply: Callable
    init: Callable
    shift: Callable | None = None
    branches: Callable | None = None

    def __call__(self, z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."], memory: Any) -> Any:
        """Returns (Prediction, memory)."""
        return self.apply(z, logsnr, memory)


def with_memory(denoise: Callable) -> Denoiser:
    """Returns any denoiser as one with memory, which is () if it had none."""
    shift, branches = getattr(denoise, "shift", None), getattr(denoise, "branches", None)
    if hasattr(denoise, "init"):
        return Denoiser(denoise, denoise.init, shift, branches)

    def keeping(function: Callable | None) -> Any:
        return function and (lambda z, logsnr, memory: (function(z, logsnr), memory))

    return Denoiser(keeping(denoise), lambda z: (), shift, keeping(branches))


def from_branches(branches: Callable, init: Callable, shift: Callable | None = None) -> Denoiser:
    """Returns the denoiser with memory that is defined by branches: (z, logsnr, memory) → (`Branches`, memory)."""

    def apply(z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."], memory: Any) -> tuple[Prediction, Any]:
        found, memory = branches(z, logsnr, memory)
        return found.guided, memory

    return Denoiser(apply, init, shift, branches)


def bind_rule(rule: Any, predict: Callable, cond: Any, null: Any, w: Any) -> Denoiser:
    """Returns `rule(predict, cond, null, w)` with memory; its results are checked. Rules that wrap others start here.

    The denoiser raises ContractError, which names the rule, while a program is traced.
    """
    return checked("rule", rule, rule(predict, cond, null, w))


def bind_pair(outer: Any, rule: Any, predict: Callable, cond: Any, null: Any, w: Any) -> Denoiser:
    """Returns `bind_rule(rule, …)`, which has `branches`. Rules that need a strong and a weak prediction start here.

    outer: the rule that wraps it. Raises UsageError if the rule does not combine two predictions.
    """
    inner = bind_rule(rule, predict, cond, null, w)
    if inner.branches is None:
        needed = "a rule that combines two predictions, such as cfg()"
        raise UsageError(f"{type(outer).__name__} wraps {rule!r}, which has no weak prediction; need {needed}")
    return inner


def bind_mixed(outer: Any, rule: Any, predict: Callable, cond: Any, null: Any, w: Any) -> Denoiser:
    """Returns `bind_pair(outer, rule, …)` of a rule whose result is (1+w) strong − w weak.

    Rules that combine the pair in another way start here. Raises UsageError if `rule` changes that result itself, since
    the change would have no effect.
    """
    changing = [type(part).__name__ for part in parts(rule) if not keeps_pair(part)]
    if changing:
        inside = f"{changing[0]} has no effect inside {type(outer).__name__}"
        raise UsageError(f"{inside}, which combines the two predictions itself; put it outside")
    return bind_pair(outer, rule, predict, cond, null, w)


def with_guided(inner: Denoiser, change: Callable) -> Denoiser:
    """Returns the denoiser that has change(branches, z, logsnr) as its guided prediction. inner: with `branches`."""

    def branches(z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."], memory: Any) -> tuple[Branches, Any]:
        found, memory = inner.branches(z, logsnr, memory)  # type: ignore[misc]
        return found._replace(guided=change(found, z, logsnr)), memory

    return from_branches(branches, inner.init, inner.shift)


def checked(kind: str, value: Any, denoise: Any) -> Denoiser:
    """Returns a denoiser with memory that raises ContractError if it does not return (Prediction, memory).

    kind, value: for messages, see `ContractError`.
    """
    if not callable(denoise):
        raise ContractError(kind, value, f"returns {described(denoise)}; need a denoiser (z, logsnr) → Prediction")
    guided = with_memory(denoise)

    def apply(z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."], memory: Any) -> tuple:
        found = guided(z, logsnr, memory)
        if not isinstance(found, tuple) or len(found) != 2:
            raise ContractError(kind, value, f"has a memory and returns {described(found)}; need (Prediction, memory)")
        prediction, after = found
        check_prediction(kind, value, prediction, z)
        check_same(kind, value, "memory", memory, after)
        return prediction, after

    def branches(z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."], memory: Any) -> tuple:
        found, after = guided.branches(z, logsnr, memory)  # type: ignore[misc]
        for prediction in found[:3]:
            check_prediction(kind, value, prediction, z)
        check_same(kind, value, "memory", memory, after)
        return found, after

    def init(z: Float[Array, "b ..."]) -> Any:
        memory = guided.init(z)
        check_arrays(kind, value, "memory", memory)
        return memory

    return Denoiser(apply, init, guided.shift, guided.branches and branches)
