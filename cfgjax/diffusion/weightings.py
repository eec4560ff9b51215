"""Weightings of the loss: factors on ‖ε − ε̂‖² that depend on the level λ.

A weighting is a function λ [B] → factor [B] on ‖ε − ε̂‖². For the unweighted losses in x, v, the flow's velocity and
EDM's F, this factor grows like e^(−λ) at the noisy end, where ε − ε̂ has few correct digits unless the network predicts
ε. These weightings therefore also have a method `on_v`: the factor on ‖v − v̂‖² = ‖ε − ε̂‖²/α², which `eps_loss` uses
instead. It is bounded for every λ, and v − v̂ is accurate at both ends for every parametrisation.

EDM = Karras et al. 2022 (arXiv:2206.00364).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cfgjax.diffusion.process import alpha_sigma
from cfgjax.diffusion.specs import Spec, finite_number, parse, positive_number


def eps_weight(logsnr: Float[Array, " b"]) -> Float[Array, " b"]:
    """Returns 1: the unweighted loss in ε."""
    return jnp.ones_like(logsnr)


@dataclass(frozen=True)
class WeightingOnV:
    """A weighting given by its factor on ‖v − v̂‖². on_v: λ [B] → factor [B]."""

    on_v: Callable

    def __call__(self, logsnr: Float[Array, " b"]) -> Float[Array, " b"]:
        """Returns the factor on ‖ε − ε̂‖², (1 + e^(−λ)) on_v(λ)."""
        return (1 + jnp.exp(-logsnr)) * self.on_v(logsnr)


def x_weight(logsnr: Float[Array, " b"]) -> Float[Array, " b"]:
    """Returns σ²: ‖x − x̂‖² = σ² ‖v − v̂‖² = e^(−λ) ‖ε − ε̂‖²."""
    return jax.nn.sigmoid(-logsnr)


def v_weight(logsnr: Float[Array, " b"]) -> Float[Array, " b"]:
    """Returns 1: the unweighted loss in v, ‖v − v̂‖² = (1 + e^(−λ)) ‖ε − ε̂‖²."""
    return jnp.ones_like(logsnr)


def flow_weight(logsnr: Float[Array, " b"]) -> Float[Array, " b"]:
    """Returns (α + σ)²: for u = ε − x, ‖u − û‖² = (α + σ)² ‖v − v̂‖² = (1 + σ/α)² ‖ε − ε̂‖²."""
    alpha, sigma = alpha_sigma(logsnr)
    return jnp.square(alpha + sigma)


@dataclass(frozen=True, repr=False)
class edm(Spec):
    """The unweighted loss in EDM's F, EDM table 1: 1 + e^(−λ)/σ_d². data_std: σ_d, as in the parametrisation."""

    data_std: Any = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "data_std", positive_number("data_std", self.data_std))

    def __call__(self, logsnr: Float[Array, " b"]) -> Float[Array, " b"]:
        """Returns 1 + e^(−λ)/σ_d²."""
        return WeightingOnV(self.on_v)(logsnr)

    def on_v(self, logsnr: Float[Array, " b"]) -> Float[Array, " b"]:
        """Returns α² + σ²/σ_d²."""
        return jax.nn.sigmoid(logsnr) + jax.nn.sigmoid(-logsnr) / self.data_std**2


@dataclass(frozen=True, repr=False)
class min_snr(Spec):
    """Min-SNR-γ: min(1, γ e^(−λ)), Hang et al. 2023 (arXiv:2303.09556) eq. (8), recalled. gamma: above 0."""

    gamma: Any = 5.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma", positive_number("gamma", self.gamma))

    def __call__(self, logsnr: Float[Array, " b"]) -> Float[Array, " b"]:
        """Returns min(1, γ e^(−λ)) as e^(min(0, log γ − λ)), which does not overflow."""
        return jnp.exp(jnp.minimum(0, jnp.log(self.gamma) - logsnr))


@dataclass(frozen=True, repr=False)
class sigmoid(Spec):
    """The sigmoid weighting: sigmoid(b − λ), arXiv:2303.00848 and 2410.19324 (recalled). b: λ at which the factor is ½.

    It is a weight on dλ: the papers also divide by the density −dt/dλ of their levels. The schedule "uniform" has the
    same expected loss.
    """

    b: Any = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "b", finite_number("b", self.b))

    def __call__(self, logsnr: Float[Array, " b"]) -> Float[Array, " b"]:
        """Returns sigmoid(b − λ)."""
        return jax.nn.sigmoid(self.b - logsnr)


WEIGHTINGS: dict[str, Any] = {
    "eps": eps_weight,
    "x": WeightingOnV(x_weight),
    "v": WeightingOnV(v_weight),
    "flow": WeightingOnV(flow_weight),
    "edm": edm,
    "min_snr": min_snr,
    "sigmoid": sigmoid,
}
"""Weightings, or dataclasses whose fields are the arguments of one."""


def parse_weighting(text: str) -> Callable:
    """Returns the weighting that text names, such as "v" or "min_snr(gamma=5)". Raises UsageError otherwise."""
    return parse(text, WEIGHTINGS, "weighting")
