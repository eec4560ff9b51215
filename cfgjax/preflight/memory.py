"""Bytes on each device of a training step: what it carries, and what its backward pass keeps."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.extend.core import Var

from cfgjax.sharding import parameter_sharding

USABLE = 0.95  # of a device's memory; the rest is the compiler's, the allocator's and the runtime's


def nbytes(leaf):
    """Bytes of an array's shape and dtype."""
    return leaf.size * leaf.dtype.itemsize


def device_bytes(tree):
    """Bytes that a device holds of a tree of shapes with shardings."""
    shard = lambda leaf: jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)
    return sum(nbytes(shard(leaf)) for leaf in jax.tree.leaves(tree))


def sharded(mesh, shapes):
    """Shapes with the shardings that parameters of such shapes have."""
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.tree.map(place, shapes, parameter_sharding(mesh, shapes))


def state_bytes(like, accumulate_steps=1):
    """{part: bytes on each device} of a training state and of the gradients, which lie as the parameters do.

    Accumulated gradients are there twice: their sum, and those of the part in hand.
    """
    params = device_bytes(like.params)
    rest = like.opt_state, like.level_losses, like.step
    gradients = params * (2 if accumulate_steps > 1 else 1)
    return {
        "parameters": params,
        "optimizer": device_bytes(rest),
        "ema": device_bytes(like.ema),
        "gradients": gradients,
    }


def residuals(program, batch_size):
    """Shapes of what the backward pass of a batch keeps, parameters apart, by tracing on one device.

    These are the residuals of `jax.vjp`: each array once, casts of parameters to bfloat16 among them, and with
    model.remat only what is kept. XLA may keep less, where it computes an array again inside a fusion.
    """
    batch = {name: drop_step(leaf, batch_size) for name, leaf in program.abstract_batches(1).items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    drawn = jax.eval_shape(program.objective.draw, key, batch, program.like.level_losses)
    unplaced = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), program.like.params)

    def kept(params, drawn, key):
        mean_loss = lambda params: jnp.mean(program.objective.terms(params, drawn, key)["loss"])
        return jax.vjp(mean_loss, params)[1]

    jaxpr = jax.make_jaxpr(kept)(unplaced, drawn, key).jaxpr
    params = set(jaxpr.invars[: len(jax.tree.leaves(unplaced))])
    found = dict.fromkeys(var for var in jaxpr.outvars if isinstance(var, Var) and var not in params)
    return [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in found]


def drop_step(leaf, batch_size):
    """The shape [batch_size, …] of a batch whose shape is [k, B, …]."""
    return jax.ShapeDtypeStruct((batch_size, *leaf.shape[2:]), leaf.dtype)


@dataclasses.dataclass(frozen=True)
class Activations:
    """Bytes kept for the backward pass on a device: fixed, whatever the batch, and per_image of its batch."""

    fixed: int
    per_image: int

    def bytes(self, images):
        """Of so many images on the device."""
        return self.fixed + images * self.per_image


def activations(program):
    """The `Activations` of a program: affine in the batch, found from two small ones.

    What does not grow with the batch are parameters in another dtype, which lie as the parameters do.
    """
    small, large = residuals(program, 2), residuals(program, 4)
    pairs = list(zip(small, large, strict=True))
    fixed = [a for a, b in pairs if a.shape == b.shape]
    growth = sum(nbytes(b) - nbytes(a) for a, b in pairs)
    return Activations(device_bytes(sharded(program.mesh, fixed)), growth // 2)


def largest_batch(memory, fixed, per_image):
    """Images on a device of `memory` bytes, of which fixed are taken, at most; 0 where there is no room for one."""
    return max(0, int((USABLE * memory - fixed) // per_image))
