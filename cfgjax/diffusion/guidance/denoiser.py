"""Denoisers: what a guidance rule returns.

A denoiser without memory is a function `denoise(z, logsnr) → Prediction`. One with memory has `denoise.init(z) →
memory` and is called as `denoise(z, logsnr, memory) → (Prediction, memory)`; the memory is any tree of arrays, starts
anew for each sample and is updated once per level. Optionally `denoise.shift(z, mean, logsnr, logsnr_next)` is added,
times the reverse variance Σ, to the mean of a sampler that has one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cfgjax.diffusion.prediction import Prediction


@dataclass(frozen=True)
class Denoiser:
    """A denoiser with memory, and maybe a shift of the mean.

    apply: (z, logsnr, memory) → (Prediction, memory). init: z → memory. shift: None for no shift.
    """

    apply: Callable
    init: Callable
    shift: Callable | None = None

    def __call__(self, z: Any, logsnr: Any, memory: Any) -> tuple[Prediction, Any]:
        return self.apply(z, logsnr, memory)


def with_memory(denoise: Callable) -> Denoiser:
    """Returns any denoiser as one with memory, which is () if it had none. Rules that wrap others start from this."""
    shift = getattr(denoise, "shift", None)
    if hasattr(denoise, "init"):
        return Denoiser(denoise, denoise.init, shift)
    return Denoiser(lambda z, logsnr, memory: (denoise(z, logsnr), memory), lambda z: (), shift)
