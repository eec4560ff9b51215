"""The variance-preserving process q(z_λ | x) and its posterior, CFG section 2. λ is log(α²/σ²); large is clean.

CFG = Ho & Salimans 2022 (arXiv:2207.12598), IDDPM = Nichol & Dhariwal 2021 (arXiv:2102.09672). Where a function takes
both λ and arrays of data, λ is a scalar or has the leading axes of the data.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

RealLike = Array | np.ndarray | np.floating | float  # types of λ, weights and variances that jax accepts


def broadcast_left(logsnr: Shaped[ArrayLike, "..."], x: Shaped[ArrayLike, "..."]) -> Shaped[Array, "..."]:
    """Returns logsnr with unit axes appended up to the rank of x, so that [B] broadcasts against [B, H, W, C]."""
    logsnr = jnp.asarray(logsnr)
    return logsnr.reshape(logsnr.shape + (1,) * (jnp.ndim(x) - logsnr.ndim))


def alpha_sigma(logsnr: Float[RealLike, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Returns signal and noise scales (α, σ) of the variance-preserving process, CFG eq. (1), with α² + σ² = 1.

    σ is not computed from 1 − α², which loses all digits at λ = 20.
    """
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))


def diffuse(
    x: Float[Array, "*shape"], eps: Float[Array, "*shape"], logsnr: Float[RealLike, "..."]
) -> Float[Array, "*shape"]:
    """Returns z = α x + σ ε, CFG eq. (1): a sample of q(z_λ | x) for ε ~ N(0, I)."""
    alpha, sigma = alpha_sigma(broadcast_left(logsnr, x))
    return alpha * x + sigma * eps


def x_from_eps(
    z: Float[Array, "*shape"], eps: Float[Array, "*shape"], logsnr: Float[RealLike, "..."]
) -> Float[Array, "*shape"]:
    """Returns x = (z − σ ε) / α. At λ = −20 this multiplies errors by 22026."""
    alpha, sigma = alpha_sigma(broadcast_left(logsnr, z))
    return (z - sigma * eps) / alpha


def eps_from_x(
    z: Float[Array, "*shape"], x: Float[Array, "*shape"], logsnr: Float[RealLike, "..."]
) -> Float[Array, "*shape"]:
    """Returns ε = (z − α x) / σ, the inverse of `x_from_eps`. At λ = 20 this multiplies errors by 22026."""
    alpha, sigma = alpha_sigma(broadcast_left(logsnr, z))
    return (z - alpha * x) / sigma


def posterior(
    z: Float[Array, "*shape"],
    x: Float[Array, "*shape"],
    logsnr: Float[RealLike, "..."],
    logsnr_next: Float[RealLike, "..."],
) -> tuple[Float[Array, "*shape"], Float[Array, "..."], Float[Array, "..."]]:
    """Returns q(z_λ' | z_λ, x) for λ < λ' as (mean, log_var_lower, log_var_upper), CFG eqs. (2)–(3).

    With r = e^(λ−λ'): mean = r (α'/α) z + (1−r) α' x; lower variance σ̃² = (1−r) σ²_λ' (the posterior's own);
    upper variance σ²_{λ|λ'} = (1−r) σ²_λ (the forward transition's). CFG interpolates between the two variances.
    The logarithms of the variances broadcast against the mean.
    """
    logsnr, logsnr_next = broadcast_left(logsnr, z), broadcast_left(logsnr_next, z)
    alpha, _ = alpha_sigma(logsnr)
    alpha_next, _ = alpha_sigma(logsnr_next)
    one_minus_r = -jnp.expm1(logsnr - logsnr_next)
    mean = jnp.exp(logsnr - logsnr_next) * (alpha_next / alpha) * z + one_minus_r * alpha_next * x
    log_one_minus_r = jnp.log(one_minus_r)
    log_var_lower = log_one_minus_r + jax.nn.log_sigmoid(-logsnr_next)
    log_var_upper = log_one_minus_r + jax.nn.log_sigmoid(-logsnr)
    return mean, log_var_lower, log_var_upper


def last_log_variances(
    z: Float[Array, "..."], logsnr: Float[RealLike, "..."], logsnr_before: Float[RealLike, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Returns (log_var_lower, log_var_upper) of the step from the last λ to x itself, as `posterior` for other steps.

    As λ' = ∞ has r = 0, the upper variance is σ²_λ. The lower one would be 0; as in IDDPM's code it is that of the
    transition before, from logsnr_before to logsnr.
    """
    _, log_var_lower, _ = posterior(z, z, logsnr_before, logsnr)
    return log_var_lower, jax.nn.log_sigmoid(-broadcast_left(logsnr, z))


def reverse_log_variance(
    v: Float[RealLike, "..."], log_var_lower: Float[Array, "..."], log_var_upper: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Returns log((σ̃²)^(1−v) (σ²_{λ|λ'})^v), CFG section 2; IDDPM eq. (15).

    v: in [0, 1], of the mean's shape if it is learned.
    """
    return jnp.asarray((1 - v) * log_var_lower + v * log_var_upper)
