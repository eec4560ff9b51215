"""Guidance weights that depend on the noise level (Wang et al. 2024, arXiv:2404.13040)."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.guidance.cfg import Weight, cfg
from cfgjax.diffusion.guidance.denoiser import Branches, Denoiser, bind_rule
from cfgjax.diffusion.guidance.wrapper import Modulator
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import RealLike
from cfgjax.diffusion.specs import check_choice, number, tree


@tree
@dataclass(frozen=True, repr=False)
class ramp(Modulator):
    """Guidance with weight w f(p), f = start + (end − start) g(p), of the step fraction p, from 0 at the noise to 1.

    shape: of g; "linear", p^power, or "cosine", (1 − cos π p^power)/2. The defaults are w(p) = 2p w, whose mean is w;
    with "cosine" they are (1 − cos π p) w. Level i of T has p = i/(T−1); between two levels f is linear in λ.
    Neutral: start = end = 1.
    """

    SHAPES: ClassVar = ("linear", "cosine")

    rule: Any = field(default_factory=cfg)
    shape: str = field(default="linear", metadata={"static": True})
    start: Any = 0.0
    end: Any = 2.0
    power: Any = 1.0

    def __post_init__(self) -> None:
        check_choice("shape", self.shape, self.SHAPES)
        for name in ("start", "end"):
            object.__setattr__(self, name, number(name, getattr(self, name)))
        object.__setattr__(self, "power", number("power", self.power, 0))

    def on_grid(self, logsnrs: Float[Array | np.ndarray, " t"]) -> "table":
        """Returns the table of f at the levels of a grid."""
        levels = jnp.asarray(logsnrs)
        part = jnp.linspace(0, 1, len(levels), dtype=levels.dtype) ** self.power
        shape = part if self.shape == "linear" else (1 - jnp.cos(jnp.pi * part)) / 2
        return table(self.rule, levels, self.start + (self.end - self.start) * shape, "linear")

    def __call__(self, predict: Callable, cond: Any, null: Any, w: Weight) -> Denoiser:
        raise UsageError(f"{self!r} is given in steps; take `on_grid(rule, logsnrs)` instead")


@tree
@dataclass(frozen=True, repr=False)
class table(Modulator):
    """Guidance with weight w f(λ), where f is factor[j] at logsnr[j].

    logsnr: increasing. kind: of f between them; "constant", factor[j] from logsnr[j] to the next one, or "linear".
    Outside of them f is the first or the last factor. Neutral: all factors 1.

    Unlike `interval`, it evaluates the null branch also where f is 0.
    """

    KINDS: ClassVar = ("constant", "linear")

    rule: Any = field(default_factory=cfg)
    logsnr: Any = (0.0,)
    factor: Any = (1.0,)
    kind: str = field(default="constant", metadata={"static": True})

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, self.KINDS)
        for name in ("logsnr", "factor"):
            object.__setattr__(self, name, several_numbers(name, getattr(self, name)))
        if not isinstance(self.logsnr, tuple) or not isinstance(self.factor, tuple):
            return
        if len(self.logsnr) != len(self.factor) or not self.logsnr:
            counts = f"{len(self.logsnr)} values of logsnr and {len(self.factor)} of factor"
            raise UsageError(f"{counts}; need equally many, at least one")
        known = [value for value in self.logsnr if isinstance(value, Real)]
        if any(a >= b for a, b in itertools.pairwise(known)):
            raise UsageError(f"logsnr {self.logsnr} does not increase")

    def at(self, logsnr: Float[RealLike, "..."]) -> Float[Array, "..."]:
        """Returns f(λ)."""
        levels, factors = jnp.asarray(self.logsnr), jnp.asarray(self.factor)
        if self.kind == "linear":
            return jnp.interp(logsnr, levels, factors)
        return factors[jnp.clip(jnp.searchsorted(levels, logsnr, side="right") - 1, 0)]

    def __call__(self, predict: Callable, cond: Any, null: Any, w: Weight) -> Denoiser:
        base = bind_rule(self.rule, predict, cond, null, w)

        def inner(z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."]) -> Denoiser:
            factor = self.at(jnp.broadcast_to(logsnr, z.shape[:1])).astype(z.dtype)
            return bind_rule(self.rule, predict, cond, null, w * factor)

        def apply(z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."], memory: Any) -> tuple[Prediction, Any]:
            return inner(z, logsnr)(z, logsnr, memory)

        def branches(z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."], memory: Any) -> tuple[Branches, Any]:
            return inner(z, logsnr).branches(z, logsnr, memory)  # type: ignore[misc]

        return Denoiser(apply, base.init, base.shift, base.branches and branches)


def several_numbers(name: str, values: Any) -> Any:
    """Returns a tuple of numbers, or an array unchanged. Raises UsageError if values are known and are neither."""
    if isinstance(values, tuple | list):
        return tuple(number(name, value) for value in values)
    if values is None or isinstance(values, Real | str):
        raise UsageError(f"{name} is {values!r}; need a tuple of numbers")
    return values
