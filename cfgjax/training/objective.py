"""What a training step minimises: the ε loss of a diffusion model, or the cross-entropy of a classifier."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cfgjax.diffusion import losses
from cfgjax.diffusion.schedules import SCHEDULES
from cfgjax.errors import UsageError, choose
from cfgjax.network import bind


class Objective(NamedTuple):
    """Three functions, of which the step is made.

    draw: (key, batch) → the batch with its random part drawn, a tree of [B, …].
    terms: (params, drawn, dropout_key) → {"loss": [B], …}, per example; the mean loss is minimised.
    summary: (terms, drawn) → {name: scalar}, what is logged besides the loss.
    """

    draw: Callable
    terms: Callable
    summary: Callable


def denoising(net, num_classes, *, p_uncond, schedule, logsnr_min, logsnr_max):
    """CFG algorithm 1: ε_θ(z_λ, c) against ε, labels dropped with probability p_uncond. config.diffusion has the rest.

    Logs loss_cond and loss_uncond over the examples that kept and lost their label (NaN if none did), and drop_rate.
    """
    choose("schedule", schedule, SCHEDULES)
    if not 0 <= p_uncond <= 1:
        raise UsageError(f"diffusion.p_uncond is {p_uncond}; need a probability")
    if not logsnr_min < logsnr_max:
        raise UsageError(f"diffusion.logsnr_min {logsnr_min} is not below diffusion.logsnr_max {logsnr_max}")
    options = dict(p_uncond=p_uncond, schedule=schedule, logsnr_min=logsnr_min, logsnr_max=logsnr_max)

    def draw(key, batch):
        eps, logsnr, label = losses.draw(key, batch["image"], batch["label"], null_label=num_classes, **options)
        return {"image": batch["image"], "label": label, "eps": eps, "logsnr": logsnr}

    def terms(params, drawn, dropout_key):
        eps_fn = bind(net, params, train=True, dropout_key=dropout_key)
        return {"loss": losses.eps_loss(eps_fn, drawn["image"], drawn["label"], drawn["eps"], drawn["logsnr"])}

    def summary(terms, drawn):
        dropped = drawn["label"] == num_classes
        mean = lambda mask: jnp.sum(jnp.where(mask, terms["loss"], 0)) / jnp.sum(mask)
        return {"loss_cond": mean(~dropped), "loss_uncond": mean(dropped), "drop_rate": jnp.mean(dropped)}

    return Objective(draw, terms, summary)


def classification(net):
    """Cross-entropy −log p(c | x) of clean images. Logs the accuracy on the batch."""

    def terms(params, drawn, dropout_key):
        logits = net.apply({"params": params}, drawn["image"], train=True, rngs={"dropout": dropout_key})["logits"]
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), drawn["label"][:, None], axis=1)[:, 0]
        return {"loss": -log_prob, "correct": logits.argmax(axis=-1) == drawn["label"]}

    return Objective(lambda key, batch: batch, terms, lambda terms, drawn: {"accuracy": jnp.mean(terms["correct"])})
