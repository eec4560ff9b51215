"""Devices: the mesh, where parameters lie on it, and how a batch is spread over it."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cfgjax.base.errors import UsageError
from cfgjax.base.numerals import is_whole_number

AXES = ("data", "fsdp")
FSDP_MIN_SIZE = 2**14  # elements; smaller arrays are replicated, gathering them would cost more than they take


def make_mesh(data=-1, fsdp=1, slices=1, devices=None):
    """Mesh of the axes (data, fsdp) over devices (default: all). One of the sizes may be −1: what is left.

    slices: parts of the devices between which the network is slow, TPU slices or groups of hosts. The data axis runs
    over them, outermost, and every fsdp group lies within one: only gradients cross.
    Raises UsageError where the sizes do not make up the number of devices, or do not fit the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes, count = {"data": data, "fsdp": fsdp}, len(devices)
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if list(sizes.values()).count(-1) > 1 or min(sizes.values()) < -1 or 0 in sizes.values():
        raise UsageError(f"mesh {sizes}: sizes are positive, and at most one is -1")
    shape = [count // fixed if size == -1 else size for size in sizes.values()]
    if np.prod(shape) != count:
        raise UsageError(f"mesh {sizes} does not make up the {count} devices")
    axis_types = (AxisType.Auto,) * 2
    if slices == 1:
        return jax.make_mesh(tuple(shape), AXES, axis_types=axis_types, devices=devices)
    parts = [
        jax.make_mesh((shape[0] // slices, shape[1]), AXES, axis_types=axis_types, devices=part).devices
        for part in split_slices(devices, slices, *shape)
    ]
    return Mesh(np.concatenate(parts), AXES, axis_types=axis_types)


def split_slices(devices, slices, data, fsdp):
    """The devices in `slices` equal parts, each of them one TPU slice or a group of neighbouring processes."""
    if slices < 1 or data % slices:
        raise UsageError(f"mesh.slices is {slices}; it must divide the data axis, which has {data} (fsdp has {fsdp})")
    slice_of = lambda device: getattr(device, "slice_index", None) or 0
    if (there := len(set(map(slice_of, devices)))) not in (1, slices):
        raise UsageError(f"mesh.slices is {slices}; the devices are in {there} slices")
    ordered = sorted(devices, key=lambda device: (slice_of(device), device.process_index, device.id))
    size = len(devices) // slices
    return [ordered[start : start + size] for start in range(0, len(devices), size)]


def parse_mesh(words):
    """{"data": …, "fsdp": …, "slices": …} of the words of a flag such as --mesh=data=8,fsdp=4, as far as given."""
    sizes = {}
    for word in words:
        name, equals, size = word.partition("=")
        if name not in ("data", "fsdp", "slices") or not equals or not is_whole_number(size) or name in sizes:
            raise UsageError(f"--mesh={','.join(words)}: need sizes of axes such as data=-1,fsdp=8,slices=2")
        sizes[name] = int(size)
    return sizes


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


def own_rows(mesh, batch_size):
    """int [b]: the rows of a batch that lie on this process's devices, increasing."""
    index = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for (rows,) in index.values()]))


def place_batch(mesh, batch, rows, batch_size, leading=0):
    """Global arrays [B, …] from a tree of numpy arrays [b, …], this process's rows of them, spread over the mesh.

    leading: how many axes stand before the batch's.
    """
    sharding, position = batch_sharding(mesh, leading), np.full(batch_size, -1)
    position[rows] = np.arange(len(rows))

    def place(array):
        shape = (*array.shape[:leading], batch_size, *array.shape[leading + 1 :])
        part = lambda index: array[(*index[:leading], position[index[leading]], *index[leading + 1 :])]
        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(place, batch)


def place_parameters(mesh, params):
    """The global arrays of a tree of numpy arrays that every process holds whole, each in its place on the mesh."""
    place = lambda array, sharding: jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
    return jax.tree.map(place, jax.tree.map(np.asarray, params), parameter_sharding(mesh, params))


def whole(mesh, tree):
    """A tree of global arrays as numpy, whole on every process."""
    return jax.device_get(jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree))


def place_global(mesh, array):
    """The global array of a numpy array [B, …] that every process holds whole, spread over the mesh."""
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, batch_sharding(mesh), lambda index: array[index])


def local_rows(array):
    """(rows [b], values [b, …]): this process's part of a global array [B, …] as numpy, in the order of the rows."""
    parts = {shard.index[0].indices(len(array))[:2]: shard.data for shard in array.addressable_shards}
    parts = dict(sorted(parts.items()))
    return np.concatenate([np.arange(*span) for span in parts]), np.concatenate([np.asarray(a) for a in parts.values()])
