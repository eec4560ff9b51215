"""Networks built from a config, and bound to parameters and to λ as ε-predictors."""

import jax
import jax.numpy as jnp

from cfgjax.config import call
from cfgjax.diffusion.schedules import network_time
from cfgjax.errors import UsageError, choose
from cfgjax.nets import CLASSIFIERS, NETS


def is_classifier(config):
    """Whether config.model names a classifier of clean images; otherwise it is an ε-predictor."""
    return config.get("model", {}).get("name") in CLASSIFIERS


def make_network(config):
    """The network of config.model for the classes and channels of config.data."""
    section = dict(config.model)
    if missing := {"num_classes", "image_shape"} - set(config.data):
        raise UsageError(f"config.data lacks {', '.join(sorted(missing))}")
    network = choose("network", section.pop("name", None), NETS | CLASSIFIERS)
    fixed = {"num_classes": config.data.num_classes}
    if not is_classifier(config):
        fixed["out_channels"] = config.data.image_shape[-1]
    return call(network, "model", section, **fixed, parent=None, name=None)


def init_params(net, key, image_shape):
    """Fresh parameters, float32."""
    return net.init(key, *inputs(net, 1, image_shape))["params"]


def inputs(net, batch, image_shape):
    """Zeros of the shapes and dtypes that net is called with."""
    image = jnp.zeros((batch, *image_shape))
    if isinstance(net, tuple(CLASSIFIERS.values())):
        return (image,)
    return image, jnp.zeros(batch), jnp.zeros(batch, jnp.int32)


def check_network(net, image_shape):
    """Parameter shapes of net at image_shape, without computing any; UsageError where they do not fit each other."""
    try:
        params = jax.eval_shape(lambda key: init_params(net, key, image_shape), jax.random.key(0))
        out = jax.eval_shape(lambda params: net.apply({"params": params}, *inputs(net, 3, image_shape)), params)
    except (TypeError, ValueError) as e:
        raise UsageError(f"config.model: {' '.join(str(e).split())}") from e
    if not isinstance(out, dict) and out.shape != (3, *image_shape):
        raise UsageError(f"config.model: takes images of shape {tuple(image_shape)} to {out.shape[1:]}")
    return params


def bind(net, params, *, train=False, dropout_key=None):
    """eps_fn(z [B, …], logsnr [B], label [B]) → ε [B, …]: net with its parameters and time = `network_time(logsnr)`."""

    def eps_fn(z, logsnr, label):
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        return net.apply({"params": params}, z, network_time(logsnr), label, train=train, rngs=rngs)

    return eps_fn
