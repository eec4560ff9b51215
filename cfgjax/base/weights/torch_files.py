"""Reads PyTorch's tensor files, without PyTorch and without running code in a pickle."""

import collections
import io
import math
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from cfgjax.base.errors import UsageError
from cfgjax.base.storage import AnyPath

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MAX_EXPANDED = 2**24  # elements of a tensor that is larger than its storage

ReadStorages = Callable[[Iterable[str]], dict[str, bytes]]

# torch's storage classes → dtypes of their little-endian elements
STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


def read_zip(path: AnyPath, archive: zipfile.ZipFile, pickled: str) -> tuple[Any, ReadStorages]:
    """Returns (unpickled object, function from storage keys to {key: bytes}) of a file of torch 1.6 or later."""
    assert archive.fp is not None  # it is open
    folder, size = pickled.removesuffix("data.pkl"), os.fstat(archive.fp.fileno()).st_size
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
        raise UsageError(f"{path} is compressed; PyTorch's files never are; refused")
    if sum(entry.file_size for entry in archive.infolist()) > size:
        raise UsageError(f"{path} is damaged: its parts declare more than its {size:,} bytes")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise UsageError(f"{path} has big-endian numbers, which are not supported")
    unpickler = Unpickler(path, io.BytesIO(archive.read(pickled)))
    value = unpickler.load()
    for storage in unpickler.storages.values():
        if (size := archive.getinfo(f"{folder}data/{storage.key}").file_size) != storage.bytes:
            raise UsageError(f"{path} is damaged: storage {storage.key} has {size} bytes, not {storage.bytes}")
    return value, lambda keys: {key: archive.read(f"{folder}data/{key}") for key in keys}


def read_legacy(path: AnyPath, file: io.BufferedReader) -> tuple[Any, ReadStorages]:
    """Returns the same as `read_zip`, for a file of torch before 1.6."""
    magic, protocol, system = (Unpickler(path, file).load() for _ in range(3))
    if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL:
        raise UsageError(f"{path} is a pickle, but not one of PyTorch's")
    if not system.get("little_endian", True):
        raise UsageError(f"{path} has big-endian numbers, which are not supported")
    unpickler = Unpickler(path, file)
    value = unpickler.load()
    starts = {}
    for key in Unpickler(path, file).load():
        storage = unpickler.storages[key]
        (numel,) = struct.unpack("<q", file.read(8))
        left = os.fstat(file.fileno()).st_size - file.tell()
        if numel != storage.numel or storage.bytes > left:
            raise UsageError(f"{path} is damaged: storage {key} needs {storage.bytes} bytes; {left} are left")
        starts[key] = file.tell()
        file.seek(storage.bytes, os.SEEK_CUR)

    def read(key: str) -> bytes:
        file.seek(starts[key])
        return file.read(unpickler.storages[key].bytes)

    return value, lambda keys: {key: read(key) for key in keys}


class Storage(NamedTuple):
    """A contiguous block of numel elements of dtype STORAGES[kind]."""

    kind: str
    key: str
    numel: int

    @property
    def bytes(self) -> int:
        return self.numel * STORAGES[self.kind].itemsize


class Tensor(NamedTuple):
    """A strided view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple
    strides: tuple


class Unpickler(pickle.Unpickler):
    """Reads a pickle of tensors in containers. Calls nothing but OrderedDict and the two functions below.

    storages: {key: Storage}, all storages that the pickle names. Storage classes are represented by their names: a
    pickle can neither call a string nor set its attributes.
    """

    def __init__(self, path: AnyPath, file: io.BufferedIOBase) -> None:
        super().__init__(file)
        self.path = path
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        # new functions for each file, since a pickle can set their attributes
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: self.tensor(*arguments),
            ("torch._utils", "_rebuild_parameter"): lambda data, requires_grad, hooks: data,
        }
        if module == "torch" and name in STORAGES:
            return name
        if (module, name) not in known:
            raise UsageError(f"{self.path} holds {module}.{name}, which is not a tensor; refused")
        return known[module, name]

    def tensor(
        self,
        storage: object,
        offset: Any,
        shape: Any,
        strides: Any,
        requires_grad: object,
        hooks: object,
        metadata: object = None,
    ) -> Tensor:
        if not isinstance(storage, Storage) or metadata:
            raise UsageError(f"{self.path} holds a tensor of an unknown kind; refused")
        return Tensor(storage, offset, shape, strides)

    def persistent_load(self, pid: Any) -> Storage:
        word, kind, key, _, numel, *view = pid  # the fourth item is the device
        if word != "storage" or kind not in STORAGES or any(view):
            raise UsageError(f"{self.path} holds a storage of an unknown kind; refused")
        if type(key) is not str or type(numel) is not int or numel < 0:
            raise UsageError(f"{self.path} is damaged: a storage has the key {key!r} and {numel!r} elements")
        storage = Storage(kind, key, numel)
        if self.storages.setdefault(key, storage) != storage:
            raise UsageError(f"{self.path} is damaged: storage {key} has two sizes or two dtypes")
        return storage


def arrays(path: AnyPath, tensors: Any, read_storages: ReadStorages) -> dict[str, np.ndarray]:
    """Returns {key: array} of a dict of Tensors. read_storages: as returned by `read_zip`."""
    if not isinstance(tensors, dict):
        raise UsageError(f"{path} holds a {type(tensors).__name__}, not a dict of tensors")
    for key, tensor in tensors.items():
        if type(key) is not str or not isinstance(tensor, Tensor):
            raise UsageError(f"{path} holds {key!r}, a {type(tensor).__name__}; need tensors by name")
        if not fits_storage(tensor):
            raise UsageError(f"{path} is damaged: tensor {key} reaches outside its storage")
    storages = read_storages({tensor.storage.key for tensor in tensors.values()})
    return {key: view(tensor, storages[tensor.storage.key]) for key, tensor in tensors.items()}


def fits_storage(tensor: Tensor) -> bool:
    """Returns whether a tensor lies in its storage and, if it is large, has no more elements than its storage."""
    _, offset, shape, strides = tensor
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides):
        return False
    if any(type(n) is not int or not 0 <= n <= sys.maxsize for n in (offset, *shape, *strides)):
        return False
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    return 0 in shape or (last < tensor.storage.numel and math.prod(shape) <= max(tensor.storage.numel, MAX_EXPANDED))


def view(tensor: Tensor, buffer: bytes) -> np.ndarray:
    """Returns the array of a Tensor as a view of the bytes of its storage. `fits_storage` must hold."""
    dtype = STORAGES[tensor.storage.kind]
    if 0 in tensor.shape or math.prod(tensor.shape) == 1:  # the strides have no meaning and may have any value
        flat = np.frombuffer(buffer, dtype)[tensor.offset : tensor.offset + math.prod(tensor.shape)]
        return flat.reshape(tensor.shape)
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    flat = np.frombuffer(buffer, dtype)[tensor.offset :]
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)
