"""Classifier-free guidance: label dropout for training, and the wrapper that makes a guided denoiser for sampling.

One convention throughout: the weight w of ε̃ = (1+w) ε(z,c) − w ε(z). w = 0 is the conditional model, w = −1 the
unconditional one. Others write a scale s = 1 + w: `scale_to_weight`.
"""

import jax
import jax.numpy as jnp

from cfgjax.diffusion.process import broadcast_left


def scale_to_weight(scale):
    """w = s − 1, for a guidance scale s in the convention where s = 1 is the conditional model."""
    return scale - 1


def drop_labels(key, label, p_uncond, null_label):
    """label with each entry replaced by null_label with probability p_uncond, CFG algorithm 1 line 2.

    label: int [B]. Drawn once per example, independently of how the batch is sharded.
    """
    dropped = jax.random.uniform(key, jnp.shape(label)) < p_uncond
    return jnp.where(dropped, null_label, label)


def conditional(eps_fn, label):
    """denoise(z, logsnr) → ε(z, c): no guidance, and half the work of `classifier_free` at w = 0.

    eps_fn: (z [B, …], logsnr [B], label [B]) → ε [B, …]. label: int [B], or a scalar for the whole batch.
    """

    def denoise(z, logsnr):
        batch = z.shape[:1]
        return eps_fn(z, jnp.broadcast_to(logsnr, batch), jnp.broadcast_to(label, batch))

    return denoise


def classifier_free(eps_fn, label, w, null_label):
    """denoise(z, logsnr) → ε̃ = (1+w) ε(z, c) − w ε(z), CFG eq. (6).

    eps_fn: (z [2B, …], logsnr [2B], label [2B]) → ε [2B, …]; called once for both branches.
    label: int [B], or a scalar for the whole batch. w: a scalar or [B], may be traced; any sign.
    null_label: the label that stands for "no condition".

    The branches of a sample stand side by side in the batch of 2B, so that a batch sharded over devices is doubled
    in place, without moving data between them.
    """

    def denoise(z, logsnr):
        batch = z.shape[0]
        both = jnp.stack([jnp.broadcast_to(label, (batch,)), jnp.full((batch,), null_label)], axis=1)
        twice = [jnp.repeat(a, 2, axis=0) for a in (z, jnp.broadcast_to(logsnr, (batch,)))]
        eps = eps_fn(*twice, both.reshape(2 * batch)).reshape(batch, 2, *z.shape[1:])
        weight = broadcast_left(jnp.asarray(w, eps.dtype), z)
        return (1 + weight) * eps[:, 0] - weight * eps[:, 1]

    return denoise
