"""Training objectives: the loss of a diffusion model, and the cross-entropy of a classifier."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

from cfgjax.base.errors import UsageError
from cfgjax.diffusion import losses
from cfgjax.diffusion.guidance import label_log_prob
from cfgjax.diffusion.prediction import parse_parametrisation
from cfgjax.diffusion.process import diffuse
from cfgjax.diffusion.weightings import parse_weighting
from cfgjax.models.network import Network, bind, bind_classifier, condition, has_null_label, null_condition
from cfgjax.models.network_inputs import CLEAN_LOGSNR
from cfgjax.runs.diffusion_settings import DiffusionSettings

Drawn = dict[str, Any]  # a batch with its random part, a tree of [B, …]
Terms = dict[str, Array]  # {"loss": [B], …}

REDRAWN, LOW_RES = 3, 4  # streams of random numbers that only some objectives draw; `losses.draw` has 0 … 2
LEVEL_BINS = 4  # of λ; a noise-aware classifier's accuracy is logged for each
SHARE = "_share"  # suffix of a metric: the share of the batch over which another metric was averaged


class Objective(NamedTuple):
    """The functions that define a training step.

    draw: (key, batch, level_losses) → the batch with its random part drawn, a tree of [B, …].
    terms: (params, drawn, dropout_key) → {"loss": [B], …} per example. The step minimises the mean loss.
    summary: (terms, drawn) → {name: scalar}, the metrics besides the loss.
    init: () → level_losses, arrays that the objective keeps from step to step; () for none.
    observe: (level_losses, terms, drawn) → level_losses after a step.
    """

    draw: Callable
    terms: Callable
    summary: Callable
    init: Callable = tuple
    observe: Callable = lambda history, terms, drawn: history


def denoising(net: Network, num_classes: int, diffusion: DiffusionSettings) -> Objective:
    """Returns the objective of CFG algorithm 1: ε̂(z_λ, c) against ε, labels dropped with probability p_uncond.

    With a learned variance it is the hybrid loss, whose mse and bound are logged. For a network with a null label,
    loss_cond and loss_uncond are logged, the losses of the examples that kept and lost their label (0 without any),
    and drop_rate.
    """
    levels, parametrisation = diffusion.levels, parse_parametrisation(diffusion.parametrisation)
    weighting = parse_weighting(diffusion.weighting)
    if diffusion.p_uncond and not has_null_label(net):
        what = "the network has no labels or no null label: need 0"
        raise UsageError(f"diffusion.p_uncond is {diffusion.p_uncond}; {what}")
    taken = condition(net, 1, ())
    noisy_low_res = "low_res_logsnr" in taken
    if noisy_low_res and "low_res" not in taken:
        raise UsageError("model.low_res_noise requires model.low_res=True")
    noisiest = diffusion.low_res_logsnr_min
    if noisy_low_res != (noisiest is not None):
        given = f"model.low_res_noise is {noisy_low_res}, diffusion.low_res_logsnr_min {noisiest}"
        raise UsageError(f"{given}: give both or neither")
    if noisiest is not None and not noisiest < CLEAN_LOGSNR:
        need = f"need a level below {CLEAN_LOGSNR:g}, which is clean"
        raise UsageError(f"diffusion.low_res_logsnr_min is {noisiest}; {need}")
    by_moment = diffusion.time_sampler == "second_moment"

    def draw(key: PRNGKeyArray, batch: dict[str, Array], history: PyTree) -> Drawn:
        image = batch["image"]
        cond = {name: batch[name] for name in taken if name in batch}
        null = null_condition(net, cond, num_classes)
        eps, u, cond = losses.draw(key, image, cond, null=null, p_uncond=diffusion.p_uncond)
        drawn = {"image": image, "cond": cond, "eps": eps}
        if by_moment:
            u, drawn["weight"] = losses.redraw_levels(jax.random.fold_in(key, REDRAWN), u, history)
        drawn |= {"u": u, "logsnr": levels.logsnr(u)}
        if noisiest is not None:
            key_level, key_noise = jax.random.split(jax.random.fold_in(key, LOW_RES))
            cond["low_res_logsnr"] = jax.random.uniform(key_level, u.shape, minval=noisiest, maxval=CLEAN_LOGSNR)
            noise = jax.random.normal(key_noise, batch["low_res"].shape)
            cond["low_res"] = diffuse(batch["low_res"], noise, cond["low_res_logsnr"])
        return drawn

    def terms(params: PyTree, drawn: Drawn, dropout_key: PRNGKeyArray) -> Terms:
        predict = bind(net, params, levels, parametrisation, train=True, dropout_key=dropout_key)
        given = predict, drawn["image"], drawn["cond"], drawn["eps"], drawn["logsnr"]
        if diffusion.learned_variance:
            bound = dict(bound_steps=levels.bound_steps, bound_weight=diffusion.bound_weight)
            found = losses.hybrid_loss(*given, *levels.neighbour(drawn["u"]), **bound)
        else:
            found = {"loss": losses.eps_loss(*given, weighting)}
        found["unweighted"] = found["loss"]
        return found | {"loss": found["loss"] * drawn["weight"]} if by_moment else found

    def summary(terms: Terms, drawn: Drawn) -> dict[str, Array]:
        weight = drawn.get("weight", 1.0)
        logged: dict[str, Array] = {name: jnp.mean(terms[name] * weight) for name in terms if name in ("mse", "bound")}
        if has_null_label(net):
            dropped = drawn["cond"]["label"] == num_classes
            logged["loss_cond"] = masked_mean(terms["loss"], ~dropped)
            logged["loss_uncond"] = masked_mean(terms["loss"], dropped)
            logged["drop_rate"] = jnp.mean(dropped)
        return logged

    if not by_moment:
        return Objective(draw, terms, summary)
    observe = lambda history, terms, drawn: losses.remember(history, drawn["u"], terms["unweighted"])
    return Objective(draw, terms, summary, losses.new_history, observe)


def classification(net: Network) -> Objective:
    """Returns the objective −log p(c | x) for clean images. It logs the accuracy on the batch."""

    def terms(params: PyTree, drawn: Drawn, dropout_key: PRNGKeyArray) -> Terms:
        logits = net.apply({"params": params}, drawn["image"], train=True, rngs={"dropout": dropout_key})["logits"]
        return cross_entropy(logits, drawn["label"])

    summary = lambda terms, drawn: {"accuracy": jnp.mean(terms["correct"])}
    return Objective(lambda key, batch, history: batch, terms, summary)


def noisy_classification(net: Network, diffusion: DiffusionSettings) -> Objective:
    """Returns the objective −log p(c | z_λ), with λ drawn as for a diffusion model; ADM (arXiv:2105.05233) section 4.

    It logs the accuracy on the batch, and in each of LEVEL_BINS equal parts of u: accuracy_0 is that of the cleanest
    examples (0 without any), accuracy_0_share their share of the batch.
    """
    levels = diffusion.levels

    def draw(key: PRNGKeyArray, batch: dict[str, Array], history: PyTree) -> Drawn:
        eps, u, _ = losses.draw(key, batch["image"], batch["label"], null=batch["label"], p_uncond=0.0)
        return {**batch, "eps": eps, "u": u}

    def terms(params: PyTree, drawn: Drawn, dropout_key: PRNGKeyArray) -> Terms:
        logsnr = levels.logsnr(drawn["u"])
        logits_fn = bind_classifier(net, params, levels=levels, train=True, dropout_key=dropout_key)
        return cross_entropy(logits_fn(diffuse(drawn["image"], drawn["eps"], logsnr), logsnr), drawn["label"])

    def summary(terms: Terms, drawn: Drawn) -> dict[str, Array]:
        part = (drawn["u"] * LEVEL_BINS).astype(jnp.int32)
        logged = {"accuracy": jnp.mean(terms["correct"])}
        for i in range(LEVEL_BINS):
            logged[f"accuracy_{i}"] = masked_mean(terms["correct"], part == i)
            logged[f"accuracy_{i}{SHARE}"] = jnp.mean(part == i)
        return logged

    return Objective(draw, terms, summary)


def masked_mean(values: Shaped[Array, " b"], mask: Bool[Array, " b"]) -> Float[Array, ""]:
    """Returns the mean of values over a mask, and 0 for an empty mask: JAX_DEBUG_NANS would stop at 0/0."""
    return jnp.sum(jnp.where(mask, values, 0)) / jnp.maximum(jnp.sum(mask), 1)


def cross_entropy(logits: Float[Array, "b k"], label: Int[Array, " b"]) -> Terms:
    """Returns {"loss": −log p(label) [B], "correct": whether label has the largest logit [B]}."""
    return {"loss": -label_log_prob(logits, label), "correct": logits.argmax(axis=-1) == label}
