"""Memory of a training step on each device: its state, and the activations kept for the backward pass."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import PyTree

from cfgjax.distributed.sharding import parameter_sharding
from cfgjax.jobs.preflight.residuals import Kept, residuals
from cfgjax.training.run import Program
from cfgjax.training.state import TrainState

USABLE = 0.95  # fraction of a device's memory; the compiler, the allocator and the runtime use the rest


def nbytes(leaf: Any) -> int:
    """Returns the bytes of an array of this shape and dtype."""
    return leaf.size * leaf.dtype.itemsize


def device_bytes(tree: PyTree) -> int:
    """Returns the bytes on one device of a tree of shapes with shardings."""
    shard = lambda leaf: jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)
    return sum(nbytes(shard(leaf)) for leaf in jax.tree.leaves(tree))


def sharded(mesh: Mesh | AbstractMesh, shapes: PyTree) -> PyTree:
    """Returns the shapes with the shardings of parameters of these shapes."""
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.tree.map(place, shapes, parameter_sharding(mesh, shapes))


def state_bytes(like: TrainState, accumulate_steps: int = 1) -> dict[str, int]:
    """Returns {part: bytes on each device} of a training state and its gradients, which are sharded like parameters.

    Accumulated gradients count twice: their sum, and the gradients of the current pass.
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


def gathered_bytes(program: Program) -> int:
    """Returns the bytes on each device if all split parameters are gathered at once, in the compute dtype.

    XLA may gather a few layers at a time. With gradient accumulation it gathers all of them before the first pass.
    """
    itemsize = jnp.dtype(program.settings.model.options.get("dtype", "float32")).itemsize
    split = [leaf for leaf in jax.tree.leaves(program.like.params) if not leaf.sharding.is_fully_replicated]
    return sum(itemsize * leaf.size for leaf in split)


def kept(program: Program, batch_size: int) -> Kept:
    """Returns the `Kept` of the backward pass of a batch, as shapes on one device."""
    batch = {name: drop_step(leaf, batch_size) for name, leaf in program.abstract_batches(1).items()}
    key = jax.eval_shape(lambda: jax.random.key(0))
    drawn = jax.eval_shape(program.objective.draw, key, batch, program.like.level_losses)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), program.like.params)
    return residuals(mean_loss(program), params, drawn, key)


def mean_loss(program: Program) -> Callable[[PyTree, PyTree, Array], Array]:
    """Returns the function (params, drawn, dropout key) → loss that the step differentiates."""
    return lambda params, drawn, key: jnp.mean(program.objective.terms(params, drawn, key)["loss"])


def drop_step(leaf: jax.ShapeDtypeStruct, batch_size: int) -> jax.ShapeDtypeStruct:
    """Returns the shape [batch_size, …] for a batch of shape [k, B, …]."""
    return jax.ShapeDtypeStruct((batch_size, *leaf.shape[2:]), leaf.dtype)


@dataclasses.dataclass(frozen=True)
class Activations:
    """Bytes kept for the backward pass on a device: `fixed` for any batch, and `per_image` for each image."""

    fixed: int
    per_image: int

    def bytes(self, images: int) -> int:
        """Returns the bytes for this number of images on the device."""
        return self.fixed + images * self.per_image


def activations(program: Program) -> dict[str, Activations]:
    """Returns {"named": `Activations`, "least": …} of a program, as in `Kept`.

    The bytes are affine in the batch size, and are found from two small batches. Arrays that do not grow with the batch
    are parameters in another dtype, sharded like the parameters.
    """
    small, large = kept(program, 2), kept(program, 4)
    named, least = (affine(program.mesh, *pair) for pair in zip(small, large, strict=True))
    return {"named": named, "least": min(named, least, key=lambda found: found.per_image)}


def affine(mesh: Mesh, small: Sequence[jax.ShapeDtypeStruct], large: Sequence[jax.ShapeDtypeStruct]) -> Activations:
    """Returns the `Activations` from the arrays kept for batches of two and of four images."""
    pairs = list(zip(small, large, strict=True))
    fixed = [a for a, b in pairs if a.shape == b.shape]
    growth = sum(nbytes(b) - nbytes(a) for a, b in pairs)
    return Activations(device_bytes(sharded(mesh, fixed)), growth // 2)


def largest_batch(memory: int, fixed: int, per_image: int) -> int:
    """Returns the largest number of images that fit on a device of `memory` bytes, next to `fixed` bytes in use."""
    return max(0, int((USABLE * memory - fixed) // per_image))
