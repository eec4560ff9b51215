"""The training objectives, and how training levels are drawn."""

import jax
import jax.numpy as jnp

from cfgjax.diffusion.guidance import drop_labels
from cfgjax.diffusion.likelihood import decoder_bits, transition_bits
from cfgjax.diffusion.process import diffuse, split_variance


def draw(key, x, label, *, null_label, p_uncond):
    """The random part of CFG algorithm 1, lines 2–4: (eps, u, label) for a batch x [B, …], label int [B].

    eps ~ N(0, I) has x's shape; u [B] ~ U[0, 1] sets the level; label [B] is null with probability p_uncond.
    Everything is drawn once per example.
    """
    key_u, key_eps, key_label = jax.random.split(key, 3)
    u = jax.random.uniform(key_u, x.shape[:1])
    eps = jax.random.normal(key_eps, x.shape)
    return eps, u, drop_labels(key_label, label, p_uncond, null_label)


def eps_loss(eps_fn, x, label, eps, logsnr):
    """Unweighted ε loss of each example, [B]: ‖ε_θ(z_λ, c) − ε‖² per dimension, CFG eq. (5) and algorithm 1 line 6.

    The mean over dimensions in place of their sum is a constant factor. The guided ε̃ never enters here.
    """
    return _mse(eps_fn(diffuse(x, eps, logsnr), logsnr, label).astype(jnp.float32), eps)


def hybrid_loss(eps_fn, x, label, eps, logsnr, neighbour, last, *, bound_steps, bound_weight=0.001):
    """L_simple + bound_weight · L_vlb of each example, for a learned variance; IDDPM (arXiv:2102.09672) eq. (16).

    eps_fn: returns 2C channels. x: 8-bit data in [−1, 1], as float32. logsnr, neighbour, last: [B], of `levels`.
    bound_steps: levels of the bound, of which each example has one term, in bits/dim. The mean is stopped in it, so
    that it trains the variance alone.
    Returns {"loss": [B], "mse": [B], "bound": [B]}, the bound as bound_steps times the term.
    """
    z = diffuse(x, eps, logsnr)
    out, v = split_variance(eps_fn(z, logsnr, label).astype(jnp.promote_types(x.dtype, jnp.float32)), x.shape[-1])
    if v is None:
        raise ValueError("the network has no learned variance")
    stopped = jax.lax.stop_gradient(out)
    # the term that an example does not have is taken where it is finite, with a finite gradient
    clean = jnp.where(last.reshape(-1, *[1] * (x.ndim - 1)), stopped, eps)
    decoder = decoder_bits(x, z, clean, v, logsnr, jnp.where(last, neighbour, logsnr - 1), clip=False)
    transition = transition_bits(x, z, stopped, v, logsnr, jnp.where(last, logsnr + 1, neighbour), clip=False)
    mse, bound = _mse(out, eps), bound_steps * jnp.where(last, decoder, transition)
    return {"loss": mse + bound_weight * bound, "mse": mse, "bound": bound}


def _mse(predicted, target):
    """Mean square over all axes but the first."""
    return jnp.mean(jnp.square(predicted - target), axis=tuple(range(1, target.ndim)))


# Levels drawn by the second moment of their loss, IDDPM section 3.3: u is cut into bins, of whose losses the last few
# are kept.

BINS, KEPT, UNIFORM_SHARE = 1000, 10, 0.001


def new_history():
    """{"losses": [BINS, KEPT], "counts": [BINS]} of a run that has seen no loss."""
    return {"losses": jnp.zeros((BINS, KEPT)), "counts": jnp.zeros(BINS, jnp.int32)}


def level_probabilities(history):
    """p [BINS] ∝ √E[L²] over the kept losses, mixed with a little of the uniform; uniform until every bin is full."""
    root = jnp.sqrt(jnp.mean(jnp.square(history["losses"]), axis=1))
    known = jnp.all(history["counts"] >= KEPT) & (jnp.sum(root) > 0)
    p = (1 - UNIFORM_SHARE) * root / jnp.where(known, jnp.sum(root), 1) + UNIFORM_SHARE / BINS
    return jnp.where(known, p, 1 / BINS)


def redraw_levels(key, u, history):
    """(u, weights): u [B], its bin drawn from `level_probabilities`, and 1 / (p BINS), which keeps means unbiased."""
    p = level_probabilities(history)
    bins = jax.random.categorical(key, jnp.log(p), shape=u.shape)
    return (bins + u) / BINS, 1 / (p[bins] * BINS)


def remember(history, u, losses):
    """history after losses [B] at u [B], unweighted, in order; a loss whose square is not finite is passed over."""

    def one(history, entry):
        u, loss = entry
        i = jnp.clip((u * BINS).astype(jnp.int32), 0, BINS - 1)
        kept = jnp.append(history["losses"][i, 1:], loss)
        fine = jnp.isfinite(jnp.square(loss))
        new = {
            "losses": history["losses"].at[i].set(jnp.where(fine, kept, history["losses"][i])),
            "counts": history["counts"].at[i].add(fine.astype(jnp.int32)),
        }
        return new, None

    return jax.lax.scan(one, history, (u, losses))[0]
