"""Denoisers: what a guidance rule returns.

A denoiser without memory is a function `denoise(z, logsnr) → Prediction`. One with memory has `denoise.init(z) →
memory` and is called as `denoise(z, logsnr, memory) → (Prediction, memory)`; the memory is any tree of arrays, starts
anew for each sample, is updated once per level, and has the same structure, shapes and dtypes at every level.
Optionally `denoise.shift(z, mean, logsnr, logsnr_next)` is added, times the reverse variance Σ, to the mean of a
sampler that has one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Float

from cfgjax.diffusion.contracts import ContractError, check_arrays, check_prediction, check_same, described
from cfgjax.diffusion.process import RealLike


@dataclass(frozen=True)
class Denoiser:
    """A denoiser with memory and, optionally, a shift of the mean.

    apply: (z, logsnr, memory) → (Prediction, memory). init: z → memory. shift: None for no shift.
    """

    apply: Callable
    init: Callable
    shift: Callable | None = None

    def __call__(self, z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."], memory: Any) -> Any:
        """Returns (Prediction, memory)."""
        return self.apply(z, logsnr, memory)


def with_memory(denoise: Callable) -> Denoiser:
    """Returns any denoiser as one with memory, which is () if it had none."""
    shift = getattr(denoise, "shift", None)
    if hasattr(denoise, "init"):
        return Denoiser(denoise, denoise.init, shift)
    return Denoiser(lambda z, logsnr, memory: (denoise(z, logsnr), memory), lambda z: (), shift)


def bind_rule(rule: Any, predict: Callable, cond: Any, null: Any, w: Any) -> Denoiser:
    """Returns `rule(predict, cond, null, w)` with memory; its results are checked. Rules that wrap others start here.

    The denoiser raises ContractError, which names the rule, while a program is traced.
    """
    return checked("rule", rule, rule(predict, cond, null, w))


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

    def init(z: Float[Array, "b ..."]) -> Any:
        memory = guided.init(z)
        check_arrays(kind, value, "memory", memory)
        return memory

    return Denoiser(apply, init, guided.shift)
