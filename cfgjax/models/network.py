"""Networks built from a config, and bound to parameters and to λ."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from cfgjax.base.errors import UsageError, choose, one_line
from cfgjax.base.storage import Place
from cfgjax.diffusion.contracts import check_prediction
from cfgjax.diffusion.levels import Continuous, Discrete
from cfgjax.diffusion.prediction import PARAMETRISATIONS, Prediction
from cfgjax.diffusion.schedules import network_time
from cfgjax.nets import CLASSIFIERS, NETS, NOISY_CLASSIFIERS
from cfgjax.nets.perturbation import Perturbation, apply_perturbed
from cfgjax.runs.config import call
from cfgjax.runs.data_settings import DataSettings
from cfgjax.runs.settings import Settings

Network = Any  # a linen module, called with (z, time, label, …)
Condition = dict[str, Array]  # {name: [B, …]}


def make_network(settings: Settings) -> Network:
    """Returns the linen module of config.model for the classes and channels of config.data."""
    network = choose("network", settings.model.name, NETS | CLASSIFIERS | NOISY_CLASSIFIERS)
    fixed = {"num_classes": settings.data.num_classes}
    if settings.diffusion is not None and not settings.is_classifier:
        fixed["out_channels"] = settings.data.image_shape[-1] * (1 + settings.diffusion.learned_variance)
    return call(network, "model", settings.model.options, **fixed, parent=None, name=None)


def init_params(net: Network, key: PRNGKeyArray, image_shape: Sequence[int]) -> PyTree:
    """Returns fresh parameters, float32."""
    args, options = inputs(net, 1, image_shape)
    return net.init(key, *args, **options)["params"]


def inputs(net: Network, batch: int, image_shape: Sequence[int]) -> tuple[tuple, dict[str, Array]]:
    """Returns (arguments, keyword arguments) of zeros, of the shapes and dtypes that net is called with."""
    image, time = jnp.zeros((batch, *image_shape)), jnp.zeros(batch)
    if isinstance(net, tuple(CLASSIFIERS.values())):
        return (image,), {}
    if isinstance(net, tuple(NOISY_CLASSIFIERS.values())):
        return (image, time), {}
    label, options = network_inputs(condition(net, batch, image_shape))
    return (image, time, label), options


def condition(net: Network, batch: int, image_shape: Sequence[int]) -> Condition:
    """Returns the condition that net takes, a tree of zeros [batch, …]: "label", and for an upsampler "low_res".

    If its low-resolution images may have noise, an upsampler also takes the λ of that noise, "low_res_logsnr".
    A network may also have inputs of its own, see `conditions`.
    """
    found = {"label": jnp.zeros(batch, jnp.int32)}
    if getattr(net, "low_res", False):
        found["low_res"] = jnp.zeros((batch, *image_shape))
    if getattr(net, "low_res_noise", False):
        found["low_res_logsnr"] = jnp.zeros(batch)
    return found | (net.condition(batch) if hasattr(net, "condition") else {})


def network_inputs(cond: Condition) -> tuple[Array, Condition]:
    """Returns (label, keyword arguments) with which a network is called for a condition."""
    options = {name: value for name, value in cond.items() if name not in ("label", "low_res_logsnr")}
    if "low_res_logsnr" in cond:
        options["low_res_time"] = network_time(cond["low_res_logsnr"])
    return cond["label"], options


def check_upsampler(net: Network, data: DataSettings) -> None:
    """Raises UsageError unless the data have low-resolution images if net takes them, and only then."""
    takes = "low_res" in condition(net, 1, data.image_shape)
    if takes != (data.low_res_size is not None):
        given = f"model.low_res is {takes}, data.low_res_size {data.low_res_size}"
        raise UsageError(f"{given}: an upsampler needs both")


def null_condition(net: Network, cond: Condition, num_classes: int) -> Condition:
    """Returns cond with "no condition" in place of its label, and of what the network's own `null` replaces."""
    null = {**cond, "label": jnp.full_like(cond["label"], num_classes)}
    return net.null(null) if hasattr(net, "null") else null


def with_label(cond: Condition, label: Int[ArrayLike, "..."]) -> Condition:
    """Returns cond with another label, an int or [B]."""
    return {**cond, "label": jnp.broadcast_to(jnp.asarray(label, jnp.int32), cond["label"].shape)}


def has_null_label(net: Network) -> bool:
    """Returns whether a denoising network takes labels and has the label "no condition"."""
    return getattr(net, "conditional", True) and getattr(net, "null_label", True)


def check_network(net: Network, image_shape: Sequence[int]) -> PyTree:
    """Returns the shapes of net's parameters, without computing any. Raises UsageError if image_shape does not fit."""
    args, options = inputs(net, 3, image_shape)
    try:
        params = jax.eval_shape(lambda key: init_params(net, key, image_shape), jax.random.key(0))
        out = jax.eval_shape(lambda params: net.apply({"params": params}, *args, **options), params)
    except (TypeError, ValueError) as e:
        raise UsageError(f"config.model: {one_line(e)}") from e
    if hasattr(net, "out_channels") and out.shape != (3, *image_shape[:-1], net.out_channels):
        need = (*image_shape[:-1], net.out_channels)
        what = f"images of shape {tuple(image_shape)} become {out.shape[1:]}; need {need}"
        raise UsageError(f"config.model: {what}")
    return params


def check_attention(net: Network, image_shape: Sequence[int], layers: Any) -> None:
    """Raises UsageError unless net has self-attention that layers selects, see `Perturbation`. Computes nothing."""
    args, options = inputs(net, 1, image_shape)
    params = jax.eval_shape(lambda key: init_params(net, key, image_shape), jax.random.key(0))
    run = lambda params: apply_perturbed(net, Perturbation(layers), {"params": params}, *args, **options)
    jax.eval_shape(run, params)


def check_params(workdir: str | Place, settings: Settings, params: PyTree) -> None:
    """Raises UsageError unless the parameters of a checkpoint in workdir have the names and shapes of the network's."""
    what = f"{workdir}: config.json and the checkpoint do not fit each other"
    try:
        expected = jax.eval_shape(
            lambda key: init_params(make_network(settings), key, settings.data.image_shape), jax.random.key(0)
        )
    except (TypeError, ValueError, ArithmeticError) as e:
        raise UsageError(f"{what}: {one_line(e)}") from e
    shapes = lambda tree: {jax.tree_util.keystr(k): v.shape for k, v in jax.tree_util.tree_leaves_with_path(tree)}
    ours, theirs = shapes(expected), shapes(params)
    if differing := [name for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name)]:
        name = differing[0]
        there, here = (tree.get(name, "absent") for tree in (theirs, ours))
        raise UsageError(f"{what}: {name} is {there} in the checkpoint, {here} by config.json; restore config.json")


def bind(
    net: Network,
    params: PyTree,
    levels: Continuous | Discrete,
    parametrisation: Callable = PARAMETRISATIONS["eps"],
    *,
    train: bool = False,
    dropout_key: PRNGKeyArray | None = None,
    perturbation: Perturbation | None = None,
) -> Callable:
    """Returns predict(z [B, …], logsnr [B], cond) → `Prediction`, the network with its parameters.

    predict.perturbed(layers, blur) is the same with perturbed attention, see `Perturbation`.

    levels: the process, which turns λ into the network's time. parametrisation: what the network predicts, a
    parametrisation of `cfgjax.diffusion.prediction`. cond: a tree like that of `condition`.
    """
    rngs = {} if dropout_key is None else {"dropout": dropout_key}
    network_input = getattr(parametrisation, "network_input", None)

    def predict(z: Float[Array, "b ..."], logsnr: Float[Array, " b"], cond: Condition) -> Prediction:
        label, options = network_inputs(cond)
        given = z if network_input is None else network_input(z, logsnr)
        inputs = {"params": params}, given, levels.time(logsnr), label
        apply = net.apply if perturbation is None else functools.partial(apply_perturbed, net, perturbation)
        output = apply(*inputs, train=train, rngs=rngs, **options)
        prediction = parametrisation(output, z, logsnr)
        check_prediction("parametrisation", parametrisation, prediction, z)
        return prediction

    def perturbed(layers: Any, blur: Any) -> Callable:
        return bind(net, params, levels, parametrisation, perturbation=Perturbation(layers, blur))

    predict.perturbed = perturbed  # type: ignore[attr-defined]
    return predict


def bind_classifier(
    net: Network,
    params: PyTree,
    *,
    levels: Continuous | Discrete,
    train: bool = False,
    dropout_key: PRNGKeyArray | None = None,
) -> Callable:
    """Returns logits_fn(z [B, …], logsnr [B]) → [B, K], a noise-aware classifier with its parameters."""
    rngs = {} if dropout_key is None else {"dropout": dropout_key}
    return lambda z, logsnr: net.apply({"params": params}, z, levels.time(logsnr), train=train, rngs=rngs)
