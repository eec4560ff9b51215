"""The training objective."""

import jax
import jax.numpy as jnp

from cfgjax.diffusion.guidance import drop_labels
from cfgjax.diffusion.process import diffuse
from cfgjax.diffusion.schedules import SCHEDULES


def draw(key, x, label, *, null_label, p_uncond, schedule, logsnr_min, logsnr_max):
    """The random part of CFG algorithm 1, lines 2–4: (eps, logsnr, label) for a batch x [B, …], label int [B].

    eps ~ N(0, I) has x's shape; logsnr [B] is the schedule at u ~ U[0, 1]; label [B] is null with probability
    p_uncond. Everything is drawn once per example.
    """
    key_u, key_eps, key_label = jax.random.split(key, 3)
    logsnr = SCHEDULES[schedule](jax.random.uniform(key_u, x.shape[:1]), logsnr_min, logsnr_max)
    eps = jax.random.normal(key_eps, x.shape)
    return eps, logsnr, drop_labels(key_label, label, p_uncond, null_label)


def eps_loss(eps_fn, x, label, eps, logsnr):
    """Unweighted ε loss of each example, [B]: ‖ε_θ(z_λ, c) − ε‖² per dimension, CFG eq. (5) and algorithm 1 line 6.

    The mean over dimensions in place of their sum is a constant factor. The guided ε̃ never enters here.
    """
    error = eps_fn(diffuse(x, eps, logsnr), logsnr, label).astype(jnp.float32) - eps
    return jnp.mean(jnp.square(error), axis=tuple(range(1, x.ndim)))
