"""Bits per dimension: the variational bound on −log₂ p(x) of 8-bit images under the discrete-time ancestral chain.

DDPM = Ho et al. 2020 (arXiv:2006.11239), IDDPM = Nichol & Dhariwal 2021 (arXiv:2102.09672). The reverse variance is
(σ̃²)^(1−v) (σ²_{λ|λ'})^v as in CFG algorithm 2; v is a number, or has x's shape where the network predicts it.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float, Key

from cfgjax.diffusion.process import (
    RealLike,
    alpha_sigma,
    broadcast_left,
    diffuse,
    last_log_variances,
    posterior,
    reverse_log_variance,
)
from cfgjax.diffusion.samplers import noise_at


def gaussian_kl(
    mean1: Float[RealLike, "..."],
    log_var1: Float[RealLike, "..."],
    mean2: Float[RealLike, "..."],
    log_var2: Float[RealLike, "..."],
) -> Float[Array, "..."]:
    """Returns KL(N(mean1, e^(log_var1)) ‖ N(mean2, e^(log_var2))) of each element in nats; the arguments broadcast."""
    wider = jnp.asarray(log_var2 - log_var1)
    # expm1: equal variances give exactly 0, and a thousand small steps keep their digits
    return 0.5 * (wider + jnp.expm1(-wider) + jnp.square(mean1 - mean2) * jnp.exp(-log_var2))


def discretised_gaussian_log_prob(
    x: Float[RealLike, "*shape"], mean: Float[RealLike, "..."], log_var: Float[RealLike, "..."]
) -> Float[Array, "*shape"]:
    """Returns the log of the mass of N(mean, e^(log_var)) in the bin of each element of x in nats, DDPM eq. (13).

    x: 8-bit data in [−1, 1], centres of 256 bins of width 2/255; the bins of −1 and 1 are open-ended.

    The normal distribution function is exact. guided-diffusion has a tanh approximation of it, clamped at 1e-12, that
    differs by up to 7e-4 nats where the standard deviation is about a bin, and without bound in the tails.
    """
    precision = jnp.exp(-0.5 * log_var)
    below, above = (x - mean - 1 / 255) * precision, (x - mean + 1 / 255) * precision
    flip = below > 0  # Φ(b) − Φ(a) = Φ(−a) − Φ(−b): on the left of 0 the logarithms keep their digits
    log_a, log_b = log_ndtr(jnp.where(flip, -above, below)), log_ndtr(jnp.where(flip, -below, above))
    inside = log_b + jnp.log(-jnp.expm1(log_a - log_b))
    return jnp.where(x < -0.999, log_ndtr(above), jnp.where(x > 0.999, log_ndtr(-below), inside))


def prior_bits(x: Float[Array, "b ..."], logsnr_min: Float[RealLike, "..."]) -> Float[Array, " b"]:
    """Returns KL(q(z_λ1 | x) ‖ N(0, I)) of each example in bits/dim. logsnr_min: λ1, a scalar or [B]."""
    logsnr_min = broadcast_left(logsnr_min, x)
    alpha, _ = alpha_sigma(logsnr_min)
    return _mean_bits(gaussian_kl(alpha * x, jax.nn.log_sigmoid(-logsnr_min), 0.0, 0.0))


def transition_bits(
    x: Float[Array, "*shape"],
    x_hat: Float[Array, "*shape"],
    v: Float[RealLike, "..."],
    logsnr: Float[RealLike, "..."],
    logsnr_next: Float[RealLike, "..."],
    *,
    clip: bool,
) -> Float[Array, " b"]:
    """Returns KL(q(z_λ' | z_λ, x) ‖ p_θ(z_λ' | z_λ)) of each example in bits/dim, DDPM eq. (5), L_{t−1}.

    x_hat: predicted from z_λ. v: a scalar or as x. logsnr < logsnr_next: λ and λ', scalars or [B].
    clip: whether x̂ is clipped to [−1, 1], as the sampler does.
    """
    x_hat = _clipped(x_hat, clip)
    # the posterior's mean is linear in z and x, so that the difference of the means is computed without cancellation
    gap, log_var_lower, log_var_upper = posterior(jnp.zeros_like(x), x - x_hat, logsnr, logsnr_next)
    return _mean_bits(gaussian_kl(gap, log_var_lower, 0.0, reverse_log_variance(v, log_var_lower, log_var_upper)))


def decoder_bits(
    x: Float[Array, "*shape"],
    x_hat: Float[Array, "*shape"],
    v: Float[RealLike, "..."],
    logsnr: Float[RealLike, "..."],
    logsnr_before: Float[RealLike, "..."],
    *,
    clip: bool,
) -> Float[Array, " b"]:
    """Returns −log₂ p(x | z_λ) at the last λ of each example in bits/dim, DDPM eq. (13).

    A discretised Gaussian about x̂ of variance between those of `last_log_variances`. Otherwise as `transition_bits`.
    """
    log_var = reverse_log_variance(v, *last_log_variances(x, logsnr, logsnr_before))
    return _mean_bits(-discretised_gaussian_log_prob(x, _clipped(x_hat, clip), log_var))


def bits_per_dim(
    keys: Key[Array, " b"],
    denoise: Callable,
    x: Float[Array, "b ..."],
    logsnrs: Float[RealLike, " t"],
    *,
    v: Float[RealLike, ""] | None,
    clip: bool = True,
) -> dict[str, Float[Array, "b ..."]]:
    """Returns the bound −log₂ p(x) ≤ prior + Σ_t terms_t in bits/dim, one draw of z_λ per level, DDPM eq. (5).

    keys: row i draws from keys[i] and the level alone. denoise: (z [B, …], logsnr [B]) → `Prediction`; T calls.
    x: 8-bit data in [−1, 1]. logsnrs: increasing. v: in [0, 1], may be traced; ignored, and may be None, if the
    variance is learned.
    clip: whether x̂ is clipped to [−1, 1].
    Returns {"total": [B], "prior": [B], "terms": [B, T]}: the T−1 transitions, then the decoder.
    """
    logsnrs = jnp.asarray(logsnrs, x.dtype)
    num_steps = logsnrs.shape[0]
    neighbours = jnp.append(logsnrs[1:], logsnrs[-2])  # the next level, and for the last one the level before

    def body(_: None, level: tuple) -> tuple[None, Array]:
        logsnr, neighbour, index = level
        z = diffuse(x, noise_at(keys, index, x.shape[1:], x.dtype), logsnr)
        x_hat, _eps, learned = denoise(z, jnp.full(x.shape[:1], logsnr))
        arguments = x, x_hat.astype(x.dtype), v if learned is None else learned, logsnr, neighbour
        term = lambda bits: functools.partial(bits, clip=clip)
        return None, jax.lax.cond(index == num_steps - 1, term(decoder_bits), term(transition_bits), *arguments)

    _, terms = jax.lax.scan(body, None, (logsnrs, neighbours, jnp.arange(num_steps)))
    prior = prior_bits(x, logsnrs[0])
    return {"total": prior + jnp.sum(terms, axis=0), "prior": prior, "terms": terms.T}


def _clipped(x: Float[Array, "b ..."], clip: bool) -> Float[Array, "b ..."]:
    return jnp.clip(x, -1, 1) if clip else x


def _mean_bits(nats: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Returns the mean over all axes but the first, in bits."""
    return jnp.mean(nats, axis=tuple(range(1, nats.ndim))) / math.log(2)
