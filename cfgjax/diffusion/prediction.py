"""Predictions: the pair (x̂, ε̂) that every network, exact oracle and guided denoiser returns, and how it is made.

`predict(z [B, …], logsnr [B], cond) → Prediction` is the interface of networks and oracles, where cond is any tree of
arrays with leading axis B. `denoise(z, logsnr) → Prediction` is a predictor with its condition and guidance bound.

A parametrisation, what a network is trained to predict, is called as (output, z, logsnr) → `Prediction`. Each estimate
is computed from the output and z, and not from the other estimate: x̂ = (z − σ ε̂)/α and ε̂ = (z − α x̂)/σ multiply errors
by 22026 at λ = −20 and λ = 20. Only a network that predicts ε or x cannot avoid one of them. If the network is given
another input than z, the parametrisation has a method `network_input(z, logsnr)`.

EDM = Karras et al. 2022 (arXiv:2206.00364).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.process import RealLike, alpha_sigma, broadcast_left, eps_from_x, x_from_eps
from cfgjax.diffusion.specs import Spec, parse, positive_number

Pair = tuple[Float[Array, "*shape"], Float[Array, "*shape"]]


class Prediction(NamedTuple):
    """Estimates of data and noise from z = α x + σ ε.

    variance: learned only, the fraction of the reverse process's upper log-variance; see `reverse_log_variance`.
    α x + σ ε = z holds unless a guidance rule says otherwise.
    """

    x: Float[Array, "b ..."]
    eps: Float[Array, "b ..."]
    variance: Float[Array, "b ..."] | None = None


def add_to_eps(prediction: Prediction, change: Float[Array, "b ..."], logsnr: Float[RealLike, "..."]) -> Prediction:
    """Returns the prediction with ε̂ + change, and with x̂ changed so that α x̂ + σ ε̂ stays the same."""
    noise_to_signal = jnp.exp(-0.5 * broadcast_left(logsnr, change))
    return prediction._replace(x=prediction.x - noise_to_signal * change, eps=prediction.eps + change)


def replace_x(prediction: Prediction, x: Float[Array, "b ..."], logsnr: Float[RealLike, "..."]) -> Prediction:
    """Returns the prediction with this x̂, and with ε̂ changed so that α x̂ + σ ε̂ stays the same."""
    signal_to_noise = jnp.exp(0.5 * broadcast_left(logsnr, x))
    return prediction._replace(x=x, eps=prediction.eps + signal_to_noise * (prediction.x - x))


def split_variance(
    output: Float[Array, "..."], channels: int
) -> tuple[Float[Array, "..."], Float[Array, "..."] | None]:
    """Returns (output, v) of a network's output with 2·channels channels, or (output, None) of one with channels.

    v = (second half + 1)/2 is the fraction of the upper log-variance, IDDPM eq. (15). It is not clipped.
    Raises ValueError for another number of channels.
    """
    if output.shape[-1] == channels:
        return output, None
    if output.shape[-1] != 2 * channels:
        raise ValueError(f"network output has {output.shape[-1]} channels; need {channels}, or {2 * channels} with v")
    return output[..., :channels], (output[..., channels:] + 1) / 2


@dataclass(frozen=True)
class Parametrisation:
    """What a network is trained to predict. pair: (output, z, logsnr) → (x̂, ε̂), accurate at both ends of λ."""

    pair: Callable

    def __call__(
        self, output: Float[Array, "b ..."], z: Float[Array, "b ..."], logsnr: Float[RealLike, " b"]
    ) -> Prediction:
        """Returns the prediction of a network's output, with or without the channels of a learned variance.

        Raises UsageError if the pair is no tuple of two.
        """
        output, variance = split_variance(output.astype(jnp.promote_types(z.dtype, jnp.float32)), z.shape[-1])
        found = self.pair(output, z, logsnr)
        if not isinstance(found, tuple) or len(found) != 2:
            raise UsageError(f"{self!r} returns {type(found).__name__} from its pair; need a tuple (x̂, ε̂)")
        return Prediction(*found, variance)


def from_eps(eps: Float[Array, "*shape"], z: Float[Array, "*shape"], logsnr: Float[RealLike, "..."]) -> Pair:
    """Returns (x̂, ε̂) of a network that predicts ε: x̂ = (z − σ ε̂)/α."""
    return x_from_eps(z, eps, logsnr), eps


def from_x(x: Float[Array, "*shape"], z: Float[Array, "*shape"], logsnr: Float[RealLike, "..."]) -> Pair:
    """Returns (x̂, ε̂) of a network that predicts x: ε̂ = (z − α x̂)/σ."""
    return x, eps_from_x(z, x, logsnr)


def from_v(v: Float[Array, "*shape"], z: Float[Array, "*shape"], logsnr: Float[RealLike, "..."]) -> Pair:
    """Returns (x̂, ε̂) of a network that predicts v = α ε − σ x: x̂ = α z − σ v̂, ε̂ = σ z + α v̂.

    Source: Salimans & Ho 2022 (arXiv:2202.00512), appendix D.
    """
    alpha, sigma = alpha_sigma(broadcast_left(logsnr, z))
    return alpha * z - sigma * v, sigma * z + alpha * v


def from_flow(u: Float[Array, "*shape"], z: Float[Array, "*shape"], logsnr: Float[RealLike, "..."]) -> Pair:
    """Returns (x̂, ε̂) of a network that predicts the flow's velocity u = ε − x: x̂ = z_f − t û, ε̂ = z_f + (1−t) û.

    z_f = z/(α+σ) = (1−t) x + t ε is the flow's state at its time t = σ/(α+σ). The network is given z, whose variance is
    1 at every level for data of variance 1. z_f only differs by a factor between 1/√2 and 1, which depends on the level
    alone and so can be learned in the first layer; a network that was trained on z_f elsewhere needs it in its input.
    """
    alpha, sigma = alpha_sigma(broadcast_left(logsnr, z))
    total = alpha + sigma
    return (z - sigma * u) / total, (z + alpha * u) / total


@dataclass(frozen=True, repr=False)
class edm(Spec):
    """EDM's F: x̂ = c_skip z/α + c_out F̂(c_in z/α), EDM eq. (7) and table 1. At data_std = 1, F = −v and the input is z.

    data_std: σ_d, the standard deviation of the data. With it, input and target have variance 1 at every level.
    """

    data_std: Any = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "data_std", positive_number("data_std", self.data_std))

    def __call__(
        self, output: Float[Array, "b ..."], z: Float[Array, "b ..."], logsnr: Float[RealLike, " b"]
    ) -> Prediction:
        """Returns the prediction of a network's output, as `Parametrisation` does."""
        return Parametrisation(self.pair)(output, z, logsnr)

    def pair(self, output: Float[Array, "*shape"], z: Float[Array, "*shape"], logsnr: Float[RealLike, "..."]) -> Pair:
        """Returns (x̂, ε̂): with s² = α² σ_d² + σ², x̂ = α σ_d² z/s² + σ σ_d F̂/s and ε̂ = σ z/s² − α σ_d F̂/s."""
        alpha, sigma, std = self._scales(z, logsnr)
        signal = alpha * self.data_std
        return (signal / std * z + sigma * output) * (self.data_std / std), (sigma / std * z - signal * output) / std

    def network_input(self, z: Float[Array, "*shape"], logsnr: Float[RealLike, "..."]) -> Float[Array, "*shape"]:
        """Returns c_in z/α = z/s, which has variance 1 for data of standard deviation σ_d."""
        if self.data_std == 1:
            return z
        return z / self._scales(z, logsnr)[2]

    def _scales(self, z: Float[Array, "*shape"], logsnr: Float[RealLike, "..."]) -> tuple[Array, Array, Array]:
        """Returns α, σ and s, the standard deviation of z for data of standard deviation σ_d."""
        alpha, sigma = alpha_sigma(broadcast_left(logsnr, z))
        return alpha, sigma, jnp.sqrt(jnp.square(alpha * self.data_std) + jnp.square(sigma))


PARAMETRISATIONS: dict[str, Any] = {
    "eps": Parametrisation(from_eps),
    "x": Parametrisation(from_x),
    "v": Parametrisation(from_v),
    "flow": Parametrisation(from_flow),
    "edm": edm,
}
"""Parametrisations, or dataclasses whose fields are the arguments of one."""


def parse_parametrisation(text: str) -> Callable:
    """Returns the parametrisation that text names, such as "v" or "edm(data_std=0.5)". Raises UsageError otherwise."""
    return parse(text, PARAMETRISATIONS, "parametrisation")
