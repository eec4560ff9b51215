"""Perturbed-attention guidance: guidance by the same network with perturbed self-attention. It needs no null label."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.guidance.attributes import at_zero, parts
from cfgjax.diffusion.guidance.cfg import Weight, conditional, plus_difference
from cfgjax.diffusion.guidance.denoiser import Branches, Denoiser, bind_rule, from_branches
from cfgjax.diffusion.guidance.labels import composed
from cfgjax.diffusion.guidance.wrapper import Around
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import RealLike, broadcast_left
from cfgjax.diffusion.specs import Spec, number, tree


@dataclass(frozen=True, repr=False)
class PerturbedAttention(Around):
    """Adds g (ε_c − ε_k) to ε̃ of another rule, and the same to x̃; ε_k is ε_c of the network with perturbed attention.

    rule: a rule on the same network. scale: g, a number or [B]. None, only with the rule conditional, takes the weight
    w: `pag()` at w = 2 is ε_c + 2 (ε_c − ε_k). With a scale, w is the weight of the rule alone.
    layers: whose attention is perturbed: "middle", that of the middle block, "all", or one or several heights in pixels
    of maps, such as 16 or (8, 16). Both papers use the middle block for Stable Diffusion (recalled), the default.

    Rules that combine a strong and a weak prediction in their own way may wrap it. The weak one is then ε_k, or with
    another rule the mean of both weak predictions, weighted by w and g. Outside of an interval that wraps it, only w
    is 0: a scale stays, like that of `classifier`.
    """

    rule: Any = field(default_factory=conditional)
    scale: Any = field(default=None, metadata={"per_sample": True})
    layers: Any = field(default="middle", metadata={"static": True})

    has_weak = True

    def __post_init__(self) -> None:
        if self.scale is not None:
            object.__setattr__(self, "scale", number("scale", self.scale))
        elif isinstance(self.rule, Spec) and not isinstance(self.rule, conditional):
            raise UsageError(f"scale is not given: w is the weight of {self.rule!r}; give scale, such as scale=1")
        check_layers(self.layers)

    @property
    def perturbation(self) -> Any:
        """The blur of the queries, None for attention that is the identity."""
        return None

    @property
    def at_zero(self) -> Any:
        rule = at_zero(self.rule)
        return rule if self.scale is None else dataclasses.replace(self, rule=rule)

    def evaluations(self, logsnrs: Float[np.ndarray, " t"]) -> Int[np.ndarray, " t"]:
        """Returns one more than the other rule at each λ."""
        return super().evaluations(logsnrs) + 1

    def __call__(self, predict: Callable, cond: Any, null: Any, w: Weight) -> Denoiser:
        if not hasattr(predict, "perturbed"):
            raise UsageError(f"{self!r} needs a network with self-attention; this predictor has none")
        if any(isinstance(part, composed) for part in parts(self.rule)):
            raise UsageError(f"{type(self).__name__} cannot be added to compose, which is of several labels")
        inner = bind_rule(self.rule, predict, cond, null, w)
        perturbed = predict.perturbed(self.layers, self.perturbation)
        g = w if self.scale is None else self.scale

        def both(z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."], memory: Any) -> tuple[Branches, Any]:
            logsnr = jnp.broadcast_to(logsnr, z.shape[:1])
            away = perturbed(z, logsnr, cond)
            if inner.branches is None:
                found, memory = inner(z, logsnr, memory)
                strong = found if isinstance(self.rule, conditional) else predict(z, logsnr, cond)
                return Branches(strong, away, plus_difference(found, strong, away, g), g), memory
            (strong, weak, guided, weight), memory = inner.branches(z, logsnr, memory)
            guided = plus_difference(guided, strong, away, g)
            return Branches(strong, mean_of_weak(strong, (weak, away), (weight, g)), guided, weight + g), memory

        return from_branches(both, inner.init, inner.shift)


@tree
@dataclass(frozen=True, repr=False)
class pag(PerturbedAttention):
    """Perturbed-attention guidance, Ahn et al. 2024 (arXiv:2403.17377): the attention weights of ε_k are the identity.

    The values pass through. rule, scale, layers: see `PerturbedAttention`.
    """


@tree
@dataclass(frozen=True, repr=False)
class seg(PerturbedAttention):
    """Smoothed energy guidance, Hong 2024 (arXiv:2408.00760): the queries of ε_k are blurred over the positions.

    blur: standard deviation of the Gaussian in positions; inf, the default, is the mean of all queries, and 0 blurs
    nothing, which leaves the other rule alone. rule, scale, layers: see `PerturbedAttention`.
    """

    blur: Any = float("inf")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "blur", number("blur", self.blur, 0))

    @property
    def perturbation(self) -> Any:
        return self.blur


def check_layers(layers: Any) -> None:
    """Raises UsageError unless layers is "middle", "all", or one or several heights."""
    heights = layers if isinstance(layers, tuple) and layers else (layers,)
    whole = all(isinstance(height, int) and not isinstance(height, bool) and height > 0 for height in heights)
    if layers not in ("middle", "all") and not whole:
        needed = '"middle", "all", or heights of maps in pixels, such as 16 or (8, 16)'
        raise UsageError(f"layers is {layers!r}; need {needed}")


def mean_of_weak(strong: Prediction, weak: tuple[Prediction, ...], weights: tuple[Weight, ...]) -> Prediction:
    """Returns the k for which Σ_j w_j (strong − weak_j) = (Σ_j w_j) (strong − k); strong where the weights sum to 0."""
    total = broadcast_left(jnp.asarray(sum(weights), strong.eps.dtype), strong.eps)
    shares = [broadcast_left(jnp.asarray(w, strong.eps.dtype), strong.eps) for w in weights]

    def mean(part: Array, *others: Array) -> Array:
        difference = sum(share * (part - other) for share, other in zip(shares, others, strict=True))
        return jnp.where(total == 0, part, part - difference / jnp.where(total == 0, 1, total))

    pairs = [(prediction.x, prediction.eps) for prediction in weak]
    x, eps = jax.tree.map(mean, (strong.x, strong.eps), *pairs)
    return Prediction(x, eps, strong.variance)
