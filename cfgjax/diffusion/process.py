"""The variance-preserving process q(z_λ | x) and its posterior, CFG section 2. λ is log(α²/σ²); large is clean."""

import jax
import jax.numpy as jnp


def broadcast_left(logsnr, x):
    """logsnr with unit axes appended up to the rank of x, so that [B] meets [B, H, W, C]."""
    logsnr = jnp.asarray(logsnr)
    return logsnr.reshape(logsnr.shape + (1,) * (jnp.ndim(x) - logsnr.ndim))


def alpha_sigma(logsnr):
    """Signal and noise scales of the variance-preserving process, CFG eq. (1).

    logsnr: any shape, λ = log(α²/σ²); large means clean.
    Returns (alpha, sigma), same shape, with α² + σ² = 1. σ is never computed from 1 − α², which loses all digits
    at λ = 20.
    """
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))


def diffuse(x, eps, logsnr):
    """z = α x + σ ε, a sample of q(z_λ | x) for ε ~ N(0, I). logsnr broadcasts from the left."""
    alpha, sigma = alpha_sigma(broadcast_left(logsnr, x))
    return alpha * x + sigma * eps


def x_from_eps(z, eps, logsnr):
    """x = (z − σ ε) / α. At λ = −20 this multiplies errors by 22026. logsnr broadcasts from the left."""
    alpha, sigma = alpha_sigma(broadcast_left(logsnr, z))
    return (z - sigma * eps) / alpha


def eps_from_x(z, x, logsnr):
    """ε = (z − α x) / σ, the inverse of `x_from_eps`. logsnr broadcasts from the left."""
    alpha, sigma = alpha_sigma(broadcast_left(logsnr, z))
    return (z - alpha * x) / sigma


def posterior(z, x, logsnr, logsnr_next):
    """q(z_λ' | z_λ, x) for λ < λ', CFG eqs. (2)–(3), with the two variances between which CFG interpolates.

    With r = e^{λ−λ'}: mean = r (α'/α) z + (1−r) α' x; lower variance σ̃² = (1−r) σ²_λ' (the posterior's own);
    upper variance σ²_{λ|λ'} = (1−r) σ²_λ (the forward transition's).
    logsnr, logsnr_next: broadcast from the left, logsnr < logsnr_next.
    Returns (mean, log_var_lower, log_var_upper): mean has z's shape, the logarithms of the variances have logsnr's
    shape with unit axes appended, so that they broadcast against mean.
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


def last_log_variances(z, logsnr, logsnr_before):
    """(log_var_lower, log_var_upper) of the step from the last λ to x itself, as `posterior` has them for the others.

    As λ' = ∞ has r = 0, the upper variance is σ²_λ; the lower one would be 0, and is that of the transition before,
    from logsnr_before to logsnr, as in IDDPM's code.
    """
    _, log_var_lower, _ = posterior(z, z, logsnr_before, logsnr)
    return log_var_lower, jax.nn.log_sigmoid(-broadcast_left(logsnr, z))


def reverse_log_variance(v, log_var_lower, log_var_upper):
    """log((σ̃²)^{1−v} (σ²_{λ|λ'})^v), CFG section 2; IDDPM eq. (15). v: a number, or [B, …] where it is learned."""
    return (1 - v) * log_var_lower + v * log_var_upper
