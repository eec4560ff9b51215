"""Bytes on each device of a training step: what it carries, and what its backward pass keeps."""

import dataclasses

import jax
import jax.numpy as jnp

from cfgjax.distributed.sharding import parameter_sharding
from cfgjax.jobs.preflight.residuals import residuals

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


def gathered_bytes(program):
    """Bytes of the split parameters, whole, in the dtype of computing: on each device if all are gathered at once.

    XLA may hold a few layers' at a time; where gradients accumulate it gathers all of them before the first pass.
    """
    itemsize = jnp.dtype(program.config.model.get("dtype", "float32")).itemsize
    split = [leaf for leaf in jax.tree.leaves(program.like.params) if not leaf.sharding.is_fully_replicated]
    return sum(itemsize * leaf.size for leaf in split)


def kept(program, batch_size):
    """The `Kept` of the backward pass of a batch, as shapes on one device."""
    batch = {name: drop_step(leaf, batch_size) for name, leaf in program.abstract_batches(1).items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    drawn = jax.eval_shape(program.objective.draw, key, batch, program.like.level_losses)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), program.like.params)
    return residuals(mean_loss(program), params, drawn, key)


def mean_loss(program):
    """The function (params, drawn, dropout key) → loss of which the step takes the gradient."""
    return lambda params, drawn, key: jnp.mean(program.objective.terms(params, drawn, key)["loss"])


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
    """{"named": `Activations`, "least": …} of a program, as in `Kept`: affine in the batch, found from two small ones.

    What does not grow with the batch are parameters in another dtype, which lie as the parameters do.
    """
    small, large = kept(program, 2), kept(program, 4)
    named, least = (affine(program.mesh, *pair) for pair in zip(small, large, strict=True))
    return {"named": named, "least": min(named, least, key=lambda found: found.per_image)}


def affine(mesh, small, large):
    """The `Activations` of what is kept of batches of two images and of four."""
    pairs = list(zip(small, large, strict=True))
    fixed = [a for a, b in pairs if a.shape == b.shape]
    growth = sum(nbytes(b) - nbytes(a) for a, b in pairs)
    return Activations(device_bytes(sharded(mesh, fixed)), growth // 2)


def largest_batch(memory, fixed, per_image):
    """Images on a device of `memory` bytes, of which fixed are taken, at most; 0 where there is no room for one."""
    return max(0, int((USABLE * memory - fixed) // per_image))
