"""Samplers: functions of (keys, denoise, z, λ grid) that run the reverse process in one `lax.scan`.

A sampler knows neither labels, guidance nor parameters: `denoise(z, logsnr [B]) → ε̃` has them. It makes T calls of
`denoise` for a grid of T levels, carries z alone, and returns x̃ of the last level with no noise added. Where the
variance is learned, `denoise` returns twice the channels, see `process.split_variance`.

Noise of sample i comes from `keys[i]` and the step alone, whatever the batch around it: step t uses
`fold_in(keys[i], t)` for t = 1 … T−1, and `initial_noise` uses t = 0.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cfgjax.diffusion.process import (
    alpha_sigma,
    broadcast_left,
    posterior,
    reverse_log_variance,
    split_variance,
    x_from_eps,
)


def noise_at(keys, step, shape, dtype=jnp.float32):
    """N(0, I) [B, *shape], row i from `fold_in(keys[i], step)` alone. keys: [B] typed keys."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), shape, dtype))(keys)


def initial_noise(keys, shape, dtype=jnp.float32):
    """z at λ_1: N(0, I) [B, *shape], row i from keys[i] alone. keys: [B] typed keys."""
    return noise_at(keys, 0, shape, dtype)


def ancestral(keys, denoise, z, logsnrs, *, v=None, shift=None, clip):
    """x̃ of the ancestral sampler, CFG algorithm 2, with reverse variance Σ = (σ̃²)^{1−v} (σ²_{λ|λ'})^v.

    keys: [B]. z: [B, …], noise at logsnrs[0]. logsnrs: [T], increasing. v: in [0, 1], may be traced; None takes the
    learned one of denoise.
    shift: (z, mean, logsnr, logsnr_next) → [B, …], times Σ added to the mean: see `guidance.classifier_shift`.
    clip: whether x̃ is clipped to [−1, 1] after guidance at every step (images; never unbounded data).
    Raises ValueError where there is no v, given or learned.
    """

    def step(x, eps, learned, z, logsnr, logsnr_next, noise):
        fraction = learned if v is None else v
        if fraction is None:
            raise ValueError("v is None and the network has no learned variance: give v")
        mean, log_var_lower, log_var_upper = posterior(z, x, logsnr, logsnr_next)
        log_var = reverse_log_variance(fraction, log_var_lower, log_var_upper)
        if shift is not None:
            mean = mean + jnp.exp(log_var) * shift(z, mean, logsnr, logsnr_next)
        return mean + jnp.exp(0.5 * log_var) * noise

    return _scan(step, keys, denoise, z, logsnrs, clip)


def ddim(keys, denoise, z, logsnrs, *, eta=0.0, clip):
    """x̃ of DDIM (Song et al. 2021, arXiv:2010.02502, eq. 12) in λ: deterministic at η = 0, ancestral(v=0) at η = 1.

    keys: [B]. z: [B, …], noise at logsnrs[0]. logsnrs: [T], increasing. eta: in [0, 1], may be traced.
    clip: whether x̃ is clipped to [−1, 1] at every step; ε̃ is then recomputed from the clipped x̃.
    """

    def step(x, eps, learned, z, logsnr, logsnr_next, noise):
        return ddim_step(x, eps, logsnr, logsnr_next, noise, eta)

    return _scan(step, keys, denoise, z, logsnrs, clip)


def ddim_step(x, eps, logsnr, logsnr_next, noise=0.0, eta=0.0):
    """z' = α' x̃ + √(σ'² − s²) ε̃ + s n with s² = η² (1 − e^{λ−λ'}) σ'². At η = 0 λ' may be on either side of λ."""
    alpha, sigma = alpha_sigma(broadcast_left(logsnr_next, x))
    share = eta**2 * -jnp.expm1(broadcast_left(logsnr - logsnr_next, x))  # of the variance σ'² that is fresh noise
    return alpha * x + sigma * (jnp.sqrt(1 - share) * eps + jnp.sqrt(share) * noise)


def ddim_encode(denoise, x, logsnrs, *, clip):
    """z at logsnrs[0] from which DDIM (η = 0) returns to x, up to its discretisation; its reverse, DDIM section 4.3.

    x: [B, …], taken as z at the last level. logsnrs: [T], increasing, as of the sampler. T − 1 calls of denoise.
    """
    logsnrs = jnp.asarray(logsnrs, x.dtype)[::-1]

    def body(z, level):
        logsnr, logsnr_next = level
        x, eps, _ = denoised(denoise, z, logsnr, clip)
        return ddim_step(x, eps, logsnr, logsnr_next), None

    return jax.lax.scan(body, x, (logsnrs[:-1], logsnrs[1:]))[0]


SAMPLERS: dict[str, Callable] = {"ancestral": ancestral, "ddim": ddim}


def _scan(step, keys, denoise, z, logsnrs, clip):
    """Runs z' = step(x̃, ε̃, z, λ, λ', noise) over the grid; at the last λ, which has no λ', z' is x̃ itself."""
    logsnrs = jnp.asarray(logsnrs, z.dtype)
    num_steps = logsnrs.shape[0]
    logsnrs_next = jnp.append(logsnrs[1:], logsnrs[-1] + 1)  # the last one is a placeholder, finite and unused

    def body(z, level):
        logsnr, logsnr_next, index = level
        x, eps, learned = denoised(denoise, z, logsnr, clip)
        noise = noise_at(keys, index + 1, z.shape[1:], z.dtype)
        return jnp.where(index == num_steps - 1, x, step(x, eps, learned, z, logsnr, logsnr_next, noise)), None

    return jax.lax.scan(body, z, (logsnrs, logsnrs_next, jnp.arange(num_steps)))[0]


def denoised(denoise, z, logsnr, clip):
    """(x̃, ε̃, v or None) at z [B, …] and λ, a scalar; with clip x̃ is clipped to [−1, 1] and ε̃ made to agree with it."""
    eps, learned = split_variance(denoise(z, jnp.full(z.shape[:1], logsnr)), z.shape[-1])
    x = x_from_eps(z, eps, logsnr)
    if clip:
        alpha, sigma = alpha_sigma(logsnr)
        # clip alone would turn an overflow into a white pixel
        clipped = jnp.where(jnp.isfinite(x), jnp.clip(x, -1, 1), jnp.nan)
        # ε from the clipped x̃, (z − α x̃)/σ, as a correction: exact where nothing was clipped
        x, eps = clipped, eps + (alpha / sigma) * (x - clipped)
    return x, eps, learned
