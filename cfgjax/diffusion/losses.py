"""The training objectives, and how training levels are drawn.

CFG = Ho & Salimans 2022 (arXiv:2207.12598), IDDPM = Nichol & Dhariwal 2021 (arXiv:2102.09672).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, Num

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.guidance import drop_condition
from cfgjax.diffusion.likelihood import decoder_bits, transition_bits
from cfgjax.diffusion.process import alpha_sigma, broadcast_left, diffuse
from cfgjax.diffusion.weightings import eps_weight


def draw(
    key: Key[Array, ""], x: Float[Array, "b ..."], cond: Any, *, null: Any, p_uncond: float
) -> tuple[Float[Array, "b ..."], Float[Array, " b"], Any]:
    """Returns the random part of CFG algorithm 1, lines 2–4: (eps, u, cond) for a batch x.

    eps ~ N(0, I); u ~ U[0, 1] sets the level; each example has the condition of null with probability p_uncond.
    cond, null: trees of arrays with leading axis B. Everything is drawn once per example.
    """
    key_u, key_eps, key_cond = jax.random.split(key, 3)
    u = jax.random.uniform(key_u, x.shape[:1])
    eps = jax.random.normal(key_eps, x.shape)
    return eps, u, drop_condition(key_cond, cond, null, p_uncond)


def eps_loss(
    predict: Callable,
    x: Float[Array, "b ..."],
    cond: Any,
    eps: Float[Array, "b ..."],
    logsnr: Float[Array, " b"],
    weighting: Callable = eps_weight,
) -> Float[Array, " b"]:
    """Returns weighting(λ) ‖ε̂(z_λ, c) − ε‖² per dimension of each example, CFG eq. (5) and algorithm 1 line 6.

    The mean over dimensions instead of their sum is a constant factor. The guided ε̃ never enters here.
    A weighting with `on_v` is applied to ‖v̂ − v‖² = ‖ε̂ − ε‖²/α², with v̂ − v = α (ε̂ − ε) − σ (x̂ − x): see `weightings`.
    Raises UsageError if the weighting returns neither a factor for each example nor a single one.
    """
    prediction = predict(diffuse(x, eps, logsnr), logsnr, cond)
    error = prediction.eps.astype(jnp.promote_types(eps.dtype, jnp.float32)) - eps
    on_v = getattr(weighting, "on_v", None)
    if on_v is not None:
        alpha, sigma = alpha_sigma(broadcast_left(logsnr, x))
        error = alpha * error - sigma * (prediction.x - x)
    weight = (on_v or weighting)(logsnr)
    if jnp.shape(weight) not in ((), logsnr.shape):  # [B, 1] would broadcast to [B, B]
        shapes = f"{list(jnp.shape(weight))} for λ of shape {list(logsnr.shape)}"
        raise UsageError(f"weighting {weighting!r} returns an array of shape {shapes}; need the same shape")
    return weight * _mean_square(error)


def hybrid_loss(
    predict: Callable,
    x: Float[Array, "b ..."],
    cond: Any,
    eps: Float[Array, "b ..."],
    logsnr: Float[Array, " b"],
    neighbour: Float[Array, " b"],
    last: Bool[Array, " b"],
    *,
    bound_steps: int | Float[Array, ""],
    bound_weight: float = 0.001,
) -> dict[str, Float[Array, " b"]]:
    """Returns L_simple + bound_weight · L_vlb of each example, for a learned variance; IDDPM eq. (16).

    x: 8-bit data in [−1, 1], as float32. logsnr, neighbour, last: of `levels`.
    bound_steps: number of levels of the bound. Each example has one term of it, in bits/dim. Its gradient with respect
    to the mean is stopped, so that it trains the variance alone.
    Returns {"loss", "mse", "bound"}, the bound as bound_steps times the term. Raises ValueError if the network has no
    learned variance.
    """
    prediction = predict(diffuse(x, eps, logsnr), logsnr, cond)
    if prediction.variance is None:
        raise ValueError("the network has no learned variance")
    v, stopped = prediction.variance, jax.lax.stop_gradient(prediction.x)
    # the term that an example does not have is evaluated where it is finite, with a finite gradient
    x_hat = jnp.where(broadcast_left(last, x), stopped, x)
    decoder = decoder_bits(x, x_hat, v, logsnr, jnp.where(last, neighbour, logsnr - 1), clip=False)
    transition = transition_bits(x, stopped, v, logsnr, jnp.where(last, logsnr + 1, neighbour), clip=False)
    mse, bound = _mean_square(prediction.eps - eps), bound_steps * jnp.where(last, decoder, transition)
    return {"loss": mse + bound_weight * bound, "mse": mse, "bound": bound}


def _mean_square(error: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """Returns the mean square over all axes but the first."""
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))


# Levels drawn by the second moment of their loss, IDDPM section 3.3. [0, 1) is divided into bins of u, and the last few
# losses of each bin are retained.

BINS, KEPT, UNIFORM_SHARE = 1000, 10, 0.001

History = dict[str, Num[Array, "bins ..."]]  # "losses" [BINS, KEPT], and "counts" [BINS] of all losses so far


def new_history() -> History:
    """Returns the history of a run that has seen no loss."""
    return {"losses": jnp.zeros((BINS, KEPT)), "counts": jnp.zeros(BINS, jnp.int32)}


def level_probabilities(history: History) -> Float[Array, " bins"]:
    """Returns p ∝ √E[L²] over the retained losses, mixed with UNIFORM_SHARE of the uniform distribution.

    It is the uniform distribution until every bin has KEPT losses. Source: IDDPM section 3.3.
    """
    root = jnp.sqrt(jnp.mean(jnp.square(history["losses"]), axis=1))
    known = jnp.all(history["counts"] >= KEPT) & (jnp.sum(root) > 0)
    p = (1 - UNIFORM_SHARE) * root / jnp.where(known, jnp.sum(root), 1) + UNIFORM_SHARE / BINS
    return jnp.where(known, p, 1 / BINS)


def redraw_levels(
    key: Key[Array, ""], u: Float[Array, " b"], history: History
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Returns (u, weights): u in a bin drawn from `level_probabilities`, and 1 / (p BINS), which keeps means unbiased.

    u: uniform in [0, 1); the position within the bin.
    """
    p = level_probabilities(history)
    bins = jax.random.categorical(key, jnp.log(p), shape=u.shape)
    return (bins + u) / BINS, 1 / (p[bins] * BINS)


def remember(history: History, u: Float[Array, " b"], losses: Float[Array, " b"]) -> History:
    """Returns the history after the unweighted losses at u, in order. Losses whose square is not finite are ignored."""

    def one(history: History, entry: tuple[Float[Array, ""], Float[Array, ""]]) -> tuple[History, None]:
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
