"""Networks as ε-predictors: built from a config, and bound to parameters and to λ."""

import jax
import jax.numpy as jnp

from cfgjax.config import call
from cfgjax.diffusion.schedules import network_time
from cfgjax.errors import UsageError, choose
from cfgjax.nets import NETS


def make_network(config):
    """The network of config.model for the classes and channels of config.data."""
    section = dict(config.model)
    if missing := {"num_classes", "image_shape"} - set(config.data):
        raise UsageError(f"config.data lacks {', '.join(sorted(missing))}")
    network = choose("network", section.pop("name", None), NETS)
    fixed = {"num_classes": config.data.num_classes, "out_channels": config.data.image_shape[-1]}
    return call(network, "model", section, **fixed, parent=None, name=None)


def init_params(net, key, image_shape):
    """Fresh parameters, float32."""
    one = jnp.zeros((1, *image_shape)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    return net.init(key, *one)["params"]


def check_network(net, image_shape):
    """Parameter shapes of net at image_shape, without computing any; UsageError where they do not fit each other."""
    batch = [jax.ShapeDtypeStruct((3, *shape), dtype) for shape, dtype in ((image_shape, "float32"), ((), "float32"))]
    label = jax.ShapeDtypeStruct((3,), "int32")
    try:
        params = jax.eval_shape(lambda key: init_params(net, key, image_shape), jax.random.key(0))
        eps = jax.eval_shape(lambda params, *inputs: net.apply({"params": params}, *inputs), params, *batch, label)
    except (TypeError, ValueError) as e:
        raise UsageError(f"config.model: {' '.join(str(e).split())}") from e
    if eps.shape != (3, *image_shape):
        raise UsageError(f"config.model: takes images of shape {tuple(image_shape)} to {eps.shape[1:]}")
    return params


def bind(net, params, *, train=False, dropout_key=None):
    """eps_fn(z [B, …], logsnr [B], label [B]) → ε [B, …]: net with its parameters and time = `network_time(logsnr)`."""

    def eps_fn(z, logsnr, label):
        rngs = {} if dropout_key is None else {"dropout": dropout_key}
        return net.apply({"params": params}, z, network_time(logsnr), label, train=train, rngs=rngs)

    return eps_fn
