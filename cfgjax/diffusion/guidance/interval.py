"""Guidance in an interval of noise levels (Kynkäänniemi et al. 2024, arXiv:2404.07724)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.guidance.attributes import at_zero, evaluations, off, parts
from cfgjax.diffusion.guidance.cfg import Weight, cfg
from cfgjax.diffusion.guidance.denoiser import Branches, Denoiser, bind_pair, bind_rule, from_branches
from cfgjax.diffusion.guidance.wrapper import Modulator
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import RealLike, broadcast_left
from cfgjax.diffusion.specs import check_choice, number, tree

LEVEL_UNITS = {  # the values that a bound can have in each unit
    "sigma": (0.0, math.inf),
    "logsnr": (-math.inf, math.inf),
    "flow": (0.0, 1.0),
    "step": (0.0, math.inf),
    "fraction": (0.0, 1.0),
}
OF_THE_GRID = ("step", "fraction")


def first_logsnr(logsnrs: Float[Array | np.ndarray, " t"], step: Shaped[RealLike | int, ""]) -> Float[Array, ""]:
    """Returns the λ from which on a level's number i is at least `step`: −∞ for step ≤ 0, ∞ for step ≥ T."""
    levels = jnp.asarray(logsnrs)
    edges = jnp.concatenate([jnp.full(1, -jnp.inf, levels.dtype), levels[1:], jnp.full(1, jnp.inf, levels.dtype)])
    return edges[jnp.sum(jnp.arange(len(levels)) < step)]


@tree
@dataclass(frozen=True, repr=False)
class interval(Modulator):
    """Guidance with weight w where low < ς ≤ high, and none elsewhere, where the null branch is not evaluated.

    unit: of low and high. "sigma", ς = σ/α = e^(−λ/2). "logsnr", λ: low ≤ λ < high. "flow", t = σ/(α+σ):
    low < t ≤ high. "step", the number i of a level, from 0 at the noise: low ≤ i < high. "fraction": low ≤ i/T < high.
    None is no bound; low = high is an empty interval. Neutral: no bounds.

    Outside, the prediction is that of `off(rule)`, usually of the conditional model, and the rule's memory stays as it
    is. All samples of a batch are at one level, as they are in every sampler; if they are not, the null branch is
    evaluated unless all of them are on the same side of the interval.

    An interval (low, high] of ς that was published for data of standard deviation d₁ becomes (low d₂/d₁, high d₂/d₁]
    for data of standard deviation d₂.
    """

    rule: Any = field(default_factory=cfg)
    low: Any = None
    high: Any = None
    unit: str = field(default="sigma", metadata={"static": True})

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, LEVEL_UNITS)
        for name in ("low", "high"):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, number(name, given, *LEVEL_UNITS[self.unit]))
        if isinstance(self.low, Real) and isinstance(self.high, Real) and self.low > self.high:
            raise UsageError(f"low is {self.low:g} and high is {self.high:g}; need low ≤ high")

    @property
    def at_zero(self) -> Any:
        zero = at_zero(self.rule)  # of CFG++ and of `cfg_zero` it still guides, which it may not do outside
        return zero if rule_kinds(zero) == rule_kinds(off(self.rule)) else replace(self, rule=zero)

    def on_grid(self, logsnrs: Float[Array | np.ndarray, " t"]) -> "interval":
        """Returns the interval in λ if it is given in steps of the grid."""
        if self.unit not in OF_THE_GRID:
            return self
        low, high = (None if bound is None else self._start(logsnrs, bound) for bound in (self.low, self.high))
        return replace(self, low=low, high=high, unit="logsnr")

    def _start(self, logsnrs: Float[Array | np.ndarray, " t"], bound: Shaped[RealLike, ""]) -> Float[Array, ""]:
        """Returns the λ of the first level whose number, or fraction, is at least the bound."""
        length = len(logsnrs)
        places = jnp.arange(length) / (length if self.unit == "fraction" else 1)
        return first_logsnr(logsnrs, jnp.sum(places < bound))

    def logsnr_bounds(self, xp: Any = jnp) -> tuple[Float[RealLike, ""], Float[RealLike, ""]]:
        """Returns (first, end) of the interval first ≤ λ < end. Raises UsageError if it is given in steps."""
        if self.unit in OF_THE_GRID:
            raise UsageError(f"{self!r} is given in steps; take `on_grid(rule, logsnrs)` instead")
        low, high = (
            limit if bound is None else bound
            for bound, limit in zip((self.low, self.high), LEVEL_UNITS[self.unit], strict=True)
        )
        if self.unit == "logsnr":
            return low, high
        return to_logsnr(high, self.unit, xp), to_logsnr(low, self.unit, xp)

    def bounds(self, logsnrs: Float[Array | np.ndarray, " t"] | None = None) -> dict[str, tuple[float, float]]:
        """Returns (low, high) in each unit; in "step" and "fraction" if the λ of a grid are given."""
        known = self if logsnrs is None else self.on_grid(np.asarray(logsnrs))
        first, end = (float(bound) + 0.0 for bound in known.logsnr_bounds(np))  # no −0
        with np.errstate(over="ignore"):
            sigmas = float(np.exp(-0.5 * np.float64(end))), float(np.exp(-0.5 * np.float64(first)))
        flows = tuple(1.0 if np.isinf(sigma) else sigma / (1 + sigma) for sigma in sigmas)
        found = {"logsnr": (first, end), "sigma": sigmas, "flow": (flows[0], flows[1])}
        if logsnrs is not None:
            start = int(np.sum(np.asarray(logsnrs) < first))
            stop = max(start, int(np.sum(np.asarray(logsnrs) < end)))
            found |= {"step": (start, stop), "fraction": (start / len(logsnrs), stop / len(logsnrs))}
        return found

    def evaluations(self, logsnrs: Float[np.ndarray, " t"]) -> Int[np.ndarray, " t"]:
        """Returns the network evaluations per sample at each λ: fewer outside of the interval."""
        first, end = (np.asarray(bound) for bound in self.on_grid(logsnrs).logsnr_bounds())
        inside = (first <= logsnrs) & (logsnrs < end)
        return np.where(inside, evaluations(self.rule, logsnrs), evaluations(off(self.rule), logsnrs))

    def __call__(self, predict: Callable, cond: Any, null: Any, w: Weight) -> Denoiser:
        first, end = self.logsnr_bounds()
        guided = bind_pair(self, self.rule, predict, cond, null, w)
        unguided = bind_rule(off(self.rule), predict, cond, null, 0.0)

        def branches(z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."], memory: Any) -> tuple[Branches, Any]:
            logsnr = jnp.broadcast_to(logsnr, z.shape[:1])
            inside = (first <= logsnr) & (logsnr < end)

            def choose(found: Prediction, strong: Prediction) -> Prediction:
                return jax.tree.map(lambda a, b: jnp.where(broadcast_left(inside, a), a, b), found, strong)

            def with_guidance(memory: tuple) -> tuple[Branches, tuple]:
                found, after = guided.branches(z, logsnr, memory[0])  # type: ignore[misc]
                strong, weak, mixed, weight = found
                weight = jnp.where(inside, jnp.asarray(weight, z.dtype), 0)
                return Branches(strong, choose(weak, strong), choose(mixed, strong), weight), (after, memory[1])

            def without(memory: tuple) -> tuple[Branches, tuple]:
                found, after = unguided(z, logsnr, memory[1])
                return Branches(found, found, found, jnp.zeros(z.shape[0], z.dtype)), (memory[0], after)

            # any(inside) of equal levels; of a sharded batch, XLA would compute that by communication at every level
            some_inside = (first <= jnp.max(logsnr)) & (jnp.min(logsnr) < end)
            return jax.lax.cond(some_inside, with_guidance, without, memory)

        return from_branches(branches, lambda z: (guided.init(z), unguided.init(z)), guided.shift)


def rule_kinds(rule: Any) -> list[type]:
    """Returns the types of a rule and of the rules in it."""
    return [type(part) for part in parts(rule)]


def to_logsnr(value: Shaped[RealLike, ""], unit: str, xp: Any = jnp) -> Shaped[RealLike, ""]:
    """Returns the λ of ς = σ/α, or of t = σ/(α+σ) = ς/(1+ς)."""
    value = xp.asarray(value)
    with np.errstate(divide="ignore"):
        return -2 * xp.log(value if unit == "sigma" else value / (1 - value))
