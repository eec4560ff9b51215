"""The device mesh, and the sharding of parameters and batches over it."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, PyTree, Shaped
from numpy.typing import ArrayLike

from cfgjax.base.errors import UsageError
from cfgjax.base.numerals import is_whole_number

AXES = ("data", "fsdp")
BUFFER_ALIGNMENT = 64  # bytes, of XLA:CPU
FSDP_MIN_SIZE = 2**14  # elements; smaller arrays are replicated, since gathering them costs more than it saves

ShapedLeaf = Array | np.ndarray | np.generic | jax.ShapeDtypeStruct


def make_mesh(data: int = -1, fsdp: int = 1, slices: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh with axes (data, fsdp) over devices (default: all). A size of −1 means all remaining devices.

    slices: number of device groups with a slow network between them: TPU slices or groups of hosts. The data axis spans
    the slices, and each fsdp group lies within one slice, so that only gradients cross the slow network.
    Raises UsageError if the sizes do not match the number of devices or the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes, count = {"data": data, "fsdp": fsdp}, len(devices)
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if list(sizes.values()).count(-1) > 1 or min(sizes.values()) < -1 or 0 in sizes.values():
        raise UsageError(f"mesh {sizes}: sizes must be positive, and at most one may be -1")
    shape = [count // fixed if size == -1 else size for size in sizes.values()]
    if np.prod(shape) != count:
        raise UsageError(f"mesh {sizes} does not match the {count} devices")
    axis_types = (AxisType.Auto,) * 2
    if slices == 1:
        return jax.make_mesh(tuple(shape), AXES, axis_types=axis_types, devices=devices)
    parts = [
        jax.make_mesh((shape[0] // slices, shape[1]), AXES, axis_types=axis_types, devices=part).devices
        for part in split_slices(devices, slices, *shape)
    ]
    return Mesh(np.concatenate(parts), AXES, axis_types=axis_types)


def split_slices(devices: Sequence[Any], slices: int, data: int, fsdp: int) -> list[list[Any]]:
    """Splits the devices into `slices` equal parts: TPU slices or groups of neighbouring processes."""
    if slices < 1 or data % slices:
        raise UsageError(f"mesh.slices is {slices}; it must divide the data axis, which has {data} (fsdp has {fsdp})")
    slice_of = lambda device: getattr(device, "slice_index", None) or 0
    if (actual := len(set(map(slice_of, devices)))) not in (1, slices):
        raise UsageError(f"mesh.slices is {slices}; the devices are in {actual} slices")
    ordered = sorted(devices, key=lambda device: (slice_of(device), device.process_index, device.id))
    size = len(devices) // slices
    return [ordered[start : start + size] for start in range(0, len(devices), size)]


def parse_mesh(words: Sequence[str]) -> dict[str, Any]:
    """Returns {axis: size} from the words of a flag such as --mesh=data=8,fsdp=4. Axes: data, fsdp, slices."""
    sizes: dict[str, Any] = {}
    for word in words:
        name, equals, size = word.partition("=")
        if name not in ("data", "fsdp", "slices") or not equals or not is_whole_number(size) or name in sizes:
            raise UsageError(f"--mesh={','.join(words)}: need sizes of axes such as data=-1,fsdp=8,slices=2")
        sizes[name] = int(size)
    return sizes


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Returns the sharding of values that are replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_sharding(mesh: Mesh | AbstractMesh, tree: PyTree) -> PyTree:
    """Returns the shardings of a tree: large arrays are split along their largest axis that is divisible by fsdp."""

    def rule(leaf: ShapedLeaf) -> NamedSharding:
        size = mesh.shape["fsdp"]
        axes = [axis for axis, length in enumerate(leaf.shape) if length % size == 0]
        if size == 1 or not axes or np.prod(leaf.shape) < FSDP_MIN_SIZE:
            return replicated(mesh)
        largest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * largest, "fsdp"))

    return jax.tree.map(rule, tree)


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Returns the sharding that splits the batch axis, which follows `leading` other axes, over all devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, AXES))


def check_batch_size(batch_size: int, mesh: Mesh, accumulate_steps: int = 1) -> None:
    """Raises UsageError unless every device gets the same number of examples in each accumulation step."""
    parts = mesh.size * accumulate_steps
    if batch_size % parts or batch_size < 1:
        below = batch_size // parts * parts
        use = f"{below} or {below + parts}" if below > 0 else f"{parts}"
        devices = "1 device" if mesh.size == 1 else f"{mesh.size} devices"
        by = devices + (f" × {accumulate_steps} accumulation steps" if accumulate_steps > 1 else "")
        raise UsageError(f"batch_size {batch_size} is not divisible by {by}; use {use}")


def own_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, " own"]:
    """Returns the sorted indices of a batch's rows on this process's devices."""
    index = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in index.values()]))


def place_batch(mesh: Mesh, batch: PyTree, rows: Int[np.ndarray, " own"], batch_size: int, leading: int = 0) -> PyTree:
    """Returns global arrays [B, …], split over the mesh, from a tree of numpy arrays [b, …] of this process's rows.

    leading: number of axes before the batch axis.
    """
    sharding, position = batch_sharding(mesh, leading), np.full(batch_size, -1)
    position[rows] = np.arange(len(rows))

    def place(array: Shaped[np.ndarray, "..."]) -> Shaped[Array, "..."]:
        shape = (*array.shape[:leading], batch_size, *array.shape[leading + 1 :])
        part = lambda index: array[(*index[:leading], position[index[leading]], *index[leading + 1 :])]
        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(place, batch)


def place_parameters(mesh: Mesh, params: PyTree) -> PyTree:
    """Returns a tree of numpy arrays, complete on every process, as global arrays sharded like parameters.

    The devices of a CPU share one copy of an array that is not split.
    """
    shareable = aligned_copy if mesh.devices.flat[0].platform == "cpu" else np.asarray

    def place(leaf: ArrayLike, sharding: NamedSharding) -> Shaped[Array, "..."]:
        array = shareable(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, params, parameter_sharding(mesh, params))


def aligned_copy(array: ArrayLike) -> Shaped[np.ndarray, "..."]:
    """Returns a copy of a numpy array at an address that lets jax use its memory as the buffer of a CPU device."""
    array = np.asarray(array)
    memory = np.empty(array.nbytes + BUFFER_ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % BUFFER_ALIGNMENT
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def part_of_mesh(mesh: Mesh, count: int) -> Mesh:
    """Returns a mesh of the first `count` devices of a mesh of one process whose parameters are not split."""
    return mesh if count >= mesh.size else Mesh(mesh.devices[:count], mesh.axis_names, axis_types=mesh.axis_types)


def on_part(mesh: Mesh, tree: PyTree) -> PyTree:
    """Returns the arrays of a tree with only their copies on the mesh, if it is a part of their devices."""
    devices = set(mesh.devices.flat)

    def take(array: object) -> object:
        if not (isinstance(array, jax.Array) and devices < array.sharding.device_set):
            return array
        copies = {shard.device: shard.data for shard in array.addressable_shards}
        parts = [copies[device] for device in mesh.devices.flat]
        return jax.make_array_from_single_device_arrays(array.shape, replicated(mesh), parts)

    return jax.tree.map(take, tree)


def whole(mesh: Mesh, tree: PyTree) -> PyTree:
    """Returns a tree of global arrays as numpy arrays that are complete on every process."""
    return jax.device_get(jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree))


def place_global(mesh: Mesh, array: ArrayLike) -> Shaped[Array, "rows ..."]:
    """Returns a global array, split over the mesh, from a numpy array [B, …] that is complete on every process."""
    rows = np.asarray(array)
    return jax.make_array_from_callback(rows.shape, batch_sharding(mesh), lambda index: rows[index])


def local_rows(array: Shaped[Array, "rows ..."]) -> tuple[Int[np.ndarray, " own"], Shaped[np.ndarray, "own ..."]]:
    """Returns (rows [b], values [b, …]) of this process's part of a global array [B, …] as numpy, sorted by row."""
    parts = {shard.index[0].indices(len(array))[:2]: shard.data for shard in array.addressable_shards}
    parts = dict(sorted(parts.items()))
    return np.concatenate([np.arange(*span) for span in parts]), np.concatenate([np.asarray(a) for a in parts.values()])
