"""Devices: the mesh, where parameters lie on it, and how a batch is spread over it."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cfgjax.errors import UsageError

AXES = ("data", "fsdp")
FSDP_MIN_SIZE = 2**14  # elements; smaller arrays are replicated, gathering them would cost more than they take


def make_mesh(data=-1, fsdp=1, devices=None):
    """Mesh of the axes (data, fsdp) over devices (default: all). One of the sizes may be −1: what is left.

    Raises UsageError where the sizes do not make up the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes, count = {"data": data, "fsdp": fsdp}, len(devices)
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if list(sizes.values()).count(-1) > 1 or min(sizes.values()) < -1 or 0 in sizes.values():
        raise UsageError(f"mesh {sizes}: sizes are positive, and at most one is -1")
    shape = [count // fixed if size == -1 else size for size in sizes.values()]
    if np.prod(shape) != count:
        raise UsageError(f"mesh {sizes} does not make up the {count} devices")
    return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def replicated(mesh):
    """The sharding of values that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_sharding(mesh, tree):
    """Shardings of a tree of arrays or shapes: the largest axis that fsdp divides is split, small arrays are not."""

    def rule(leaf):
        size = mesh.shape["fsdp"]
        axes = [axis for axis, length in enumerate(leaf.shape) if length % size == 0]
        if size == 1 or not axes or np.prod(leaf.shape) < FSDP_MIN_SIZE:
            return replicated(mesh)
        largest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * largest, "fsdp"))

    return jax.tree.map(rule, tree)


def batch_sharding(mesh, leading=0):
    """The sharding of arrays whose batch axis, after `leading` others, is spread over all devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, AXES))


def check_batch_size(batch_size, mesh, accumulate_steps=1):
    """Raises UsageError unless every device gets equally many examples in each accumulation step."""
    parts = mesh.size * accumulate_steps
    if batch_size % parts or batch_size < 1:
        below = batch_size // parts * parts
        use = f"{below} or {below + parts}" if below > 0 else f"{parts}"
        by = f"{mesh.size} devices" + (f" × {accumulate_steps} accumulation steps" if accumulate_steps > 1 else "")
        raise UsageError(f"batch_size {batch_size} is not divisible by {by}; use {use}")


def place_batch(mesh, batch, leading=0):
    """Global arrays from each process's slice of the batch (numpy), spread over the mesh."""
    sharding = batch_sharding(mesh, leading)
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(sharding, array), batch)


def place_global(mesh, array):
    """The global array of a numpy array [B, …] that every process holds whole, spread over the mesh."""
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, batch_sharding(mesh), lambda index: array[index])


def local_rows(array):
    """(rows [b], values [b, …]): this process's part of a global array [B, …] as numpy, in the order of the rows."""
    parts = {shard.index[0].indices(len(array))[:2]: shard.data for shard in array.addressable_shards}
    parts = dict(sorted(parts.items()))
    return np.concatenate([np.arange(*span) for span in parts]), np.concatenate([np.asarray(a) for a in parts.values()])
