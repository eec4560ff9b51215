"""Predictions: the pair (x̂, ε̂) that every network, exact oracle and guided denoiser returns.

`predict(z [B, …], logsnr [B], cond) → Prediction` is the interface of networks and oracles, where cond is any tree of
arrays with leading axis B. `denoise(z, logsnr) → Prediction` is a predictor with its condition and guidance bound.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.process import RealLike, broadcast_left, x_from_eps


class Prediction(NamedTuple):
    """Estimates of data and noise from z = α x + σ ε.

    variance: learned only, the fraction of the reverse process's upper log-variance; see `reverse_log_variance`.
    α x + σ ε = z holds unless a guidance rule says otherwise.
    """

    x: Float[Array, "b ..."]
    eps: Float[Array, "b ..."]
    variance: Float[Array, "b ..."] | None = None


def from_eps(
    eps: Float[Array, "*shape"], z: Float[Array, "*shape"], logsnr: Float[RealLike, "..."]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Returns (x̂, ε̂) of a network that predicts ε: x̂ = (z − σ ε̂)/α."""
    return x_from_eps(z, eps, logsnr), eps


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


PARAMETRISATIONS = {"eps": Parametrisation(from_eps)}
