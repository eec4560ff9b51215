"""Guidance: label dropout for training, and the wrappers that make guided denoisers for sampling.

One convention throughout: the weight w of ε̃ = (1+w) ε(z,c) − w ε(z). w = 0 is the conditional model, w = −1 the
unconditional one. Others write a scale s = 1 + w: `scale_to_weight`. Classifier guidance has a scale of its own, that
of ∇ log p(c|z); of an exact classifier and the unconditional ε, scale s is w = s − 1.

A denoiser may have 2C channels, ε first and then what sets its variance: guidance is of ε alone.
"""

import jax
import jax.numpy as jnp

from cfgjax.diffusion.process import alpha_sigma, broadcast_left


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
    null_label: the label that stands for "no condition". A learned variance is that of the conditional branch.

    The branches of a sample stand side by side in the batch of 2B, so that a batch sharded over devices is doubled
    in place, without moving data between them.
    """

    def denoise(z, logsnr):
        batch = z.shape[0]
        both = jnp.stack([jnp.broadcast_to(label, (batch,)), jnp.full((batch,), null_label)], axis=1)
        twice = [jnp.repeat(a, 2, axis=0) for a in (z, jnp.broadcast_to(logsnr, (batch,)))]
        out = eps_fn(*twice, both.reshape(2 * batch))
        out = out.reshape(batch, 2, *out.shape[1:])
        eps = out[..., : z.shape[-1]]
        weight = broadcast_left(jnp.asarray(w, out.dtype), z)
        return replace_eps(out[:, 0], (1 + weight) * eps[:, 0] - weight * eps[:, 1])

    return denoise


def replace_eps(out, eps):
    """out [B, …, C or more] with eps [B, …, C] in place of its first channels."""
    rest = out[..., eps.shape[-1] :]
    return jnp.concatenate([eps, rest], axis=-1) if rest.shape[-1] else eps


def label_log_prob(logits, label):
    """log p(label) of logits [B, K] and label int [B], [B]."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1)[:, 0]


def classifier_score(logits_fn, label):
    """score(z [B, …], logsnr) → ∇_z log p(label | z), float32, z's shape.

    logits_fn: (z, logsnr [B]) → [B, K], each row of its own z alone. label: int [B], or a scalar for the whole batch.
    The gradient is that of the sum over the batch: a mean would divide every sample's guidance by B.
    """

    def score(z, logsnr):
        batch = z.shape[:1]
        logsnr, wanted = jnp.broadcast_to(logsnr, batch), jnp.broadcast_to(label, batch)
        dtype = jnp.promote_types(z.dtype, jnp.float32)

        def log_prob(z):
            return jnp.sum(label_log_prob(logits_fn(z, logsnr).astype(dtype), wanted))

        return jax.grad(log_prob)(z.astype(dtype))

    return score


def classifier_guided(denoise, score, scale):
    """denoise'(z, logsnr) → ε̃ − s σ ∇_z log p(c|z), ADM (arXiv:2105.05233) algorithm 2, for any sampler.

    denoise: (z, logsnr) → ε̃, guided or not: the two kinds of guidance add. score: as of `classifier_score`.
    scale: s, a scalar or [B], may be traced.
    """

    def guided(z, logsnr):
        out = denoise(z, logsnr)
        _, sigma = alpha_sigma(broadcast_left(logsnr, z))
        shift = broadcast_left(jnp.asarray(scale, jnp.float32), z) * sigma * score(z, logsnr)
        return replace_eps(out, out[..., : z.shape[-1]] - shift)

    return guided


def classifier_shift(score, scale, at="z"):
    """shift(z, mean, logsnr, logsnr_next) → s ∇ log p(c|·), by which `ancestral` takes μ + s Σ ∇; ADM algorithm 1.

    at: where the gradient is taken, "z", at z_λ as ADM's code does, or "mean", at μ and λ', about which ADM expands
    log p(c|z_λ') (section 4.1). score, scale: as in `classifier_guided`.
    """
    if at not in ("z", "mean"):
        raise ValueError(f"at is {at!r}; need 'z' or 'mean'")

    def shift(z, mean, logsnr, logsnr_next):
        gradient = score(z, logsnr) if at == "z" else score(mean, logsnr_next)
        return broadcast_left(jnp.asarray(scale, jnp.float32), z) * gradient

    return shift
