"""State dicts out of PyTorch's files, safetensors and .npz, without PyTorch, and without running what a pickle asks."""

import collections
import io
import json
import math
import os
import pickle
import struct
import sys
import zipfile
from typing import NamedTuple

import ml_dtypes
import numpy as np

from cfgjax.errors import UsageError
from cfgjax.files import check_entries, read_npz

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

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

# the same for safetensors (github.com/huggingface/safetensors, its README)
SAFETENSORS = {
    "F64": STORAGES["DoubleStorage"],
    "F32": STORAGES["FloatStorage"],
    "F16": STORAGES["HalfStorage"],
    "BF16": STORAGES["BFloat16Storage"],
    "I64": STORAGES["LongStorage"],
    "I32": STORAGES["IntStorage"],
    "I16": STORAGES["ShortStorage"],
    "I8": STORAGES["CharStorage"],
    "U8": STORAGES["ByteStorage"],
    "BOOL": STORAGES["BoolStorage"],
}


def read_state_dict(path):
    """{key: numpy array}, read-only, of a PyTorch file (.pth, .pt; zip or the older stream), safetensors or an .npz.

    What the file holds tells its kind, not its name. A dict below the key `state_dict` stands for the whole.
    Of a pickle only tensors in dicts are read. Raises UsageError for anything else, and for a damaged or missing file.
    """
    try:
        with open(path, "rb") as file:
            return read(path, file)
    except UsageError:
        raise
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror or e}") from e
    except Exception as e:  # a damaged archive or pickle may raise anything
        raise UsageError(f"cannot read {path}: {' '.join(str(e).split()) or type(e).__name__}") from e


def read(path, file):
    """`read_state_dict` of an open file."""
    begin = file.read(9)
    file.seek(0)
    if begin[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(file) as archive:
            check_entries(archive)
            pickles = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
            if pickles:
                return arrays(path, *read_zip(path, archive, pickles[0]))
        return read_npz(path)
    if begin[5:] == b"\0\0\0{":  # the length of a header of less than 2⁴⁰ bytes, and the header
        return read_safetensors(path, file)
    if begin[:1] != b"\x80":  # how every pickle of protocol 2 and later begins
        raise UsageError(f"{path} is neither a PyTorch file nor an .npz nor safetensors")
    return arrays(path, *read_legacy(path, file))


def read_zip(path, archive, pickled):
    """(unpickled object, {key: bytes of the storage}) of a file of torch 1.6 and later."""
    folder = pickled.removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
        raise UsageError(f"{path} holds big-endian numbers, which are not read")
    unpickler = Unpickler(path, io.BytesIO(archive.read(pickled)))
    value = unpickler.load()
    for storage in unpickler.storages.values():
        if (size := archive.getinfo(f"{folder}data/{storage.key}").file_size) != storage.bytes:
            raise UsageError(f"{path} is damaged: storage {storage.key} has {size} bytes, not {storage.bytes}")
    return value, {key: archive.read(f"{folder}data/{key}") for key in unpickler.storages}


def read_legacy(path, file):
    """(unpickled object, {key: bytes of the storage}) of a file of torch before 1.6."""
    magic, protocol, system = (Unpickler(path, file).load() for _ in range(3))
    if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL:
        raise UsageError(f"{path} is a pickle, but not one of PyTorch's")
    if not system.get("little_endian", True):
        raise UsageError(f"{path} holds big-endian numbers, which are not read")
    unpickler = Unpickler(path, file)
    value = unpickler.load()
    storages = {}
    for key in Unpickler(path, file).load():
        storage = unpickler.storages[key]
        (numel,) = struct.unpack("<q", file.read(8))
        left = os.fstat(file.fileno()).st_size - file.tell()
        if numel != storage.numel or storage.bytes > left:
            raise UsageError(f"{path} is damaged: storage {key} has {left} bytes left of {storage.bytes}")
        storages[key] = file.read(storage.bytes)
    return value, storages


class Storage(NamedTuple):
    """A run of numel elements of STORAGES[kind]."""

    kind: str
    key: str
    numel: int

    @property
    def bytes(self):
        return self.numel * STORAGES[self.kind].itemsize


class Tensor(NamedTuple):
    """A strided view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple
    strides: tuple


class Unpickler(pickle.Unpickler):
    """Reads a pickle of tensors in containers; calls nothing but OrderedDict and the two functions below.

    storages: {key: Storage} of those that the pickle names. Storage classes come out as their names: a string cannot
    be called, nor its attributes be set by a pickle.
    """

    def __init__(self, path, file):
        super().__init__(file)
        self.path = path
        self.storages = {}

    def find_class(self, module, name):
        # functions made anew for each file, since a pickle can set their attributes
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

    def tensor(self, storage, offset, shape, strides, requires_grad, hooks, metadata=None):
        if not isinstance(storage, Storage) or metadata:
            raise UsageError(f"{self.path} holds a tensor of an unknown kind; refused")
        return Tensor(storage, offset, shape, strides)

    def persistent_load(self, pid):
        word, kind, key, _, numel, *view = pid  # the fourth is the device it was on
        if word != "storage" or kind not in STORAGES or any(view):
            raise UsageError(f"{self.path} holds a storage of an unknown kind; refused")
        if type(key) is not str or type(numel) is not int or numel < 0:
            raise UsageError(f"{self.path} is damaged: a storage has the key {key!r} and {numel!r} elements")
        storage = Storage(kind, key, numel)
        if self.storages.setdefault(key, storage) != storage:
            raise UsageError(f"{self.path} is damaged: storage {key} has two sizes or two dtypes")
        return storage


def arrays(path, value, storages):
    """{key: array} of an unpickled dict of Tensors."""
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    if not isinstance(value, dict):
        raise UsageError(f"{path} holds a {type(value).__name__}, not a dict of tensors")
    found = {}
    for key, tensor in value.items():
        if type(key) is not str or not isinstance(tensor, Tensor):
            raise UsageError(f"{path} holds {key!r}, a {type(tensor).__name__}; need tensors by name")
        if not fits(tensor):
            raise UsageError(f"{path} is damaged: tensor {key} reaches outside its storage")
        found[key] = view(tensor, storages[tensor.storage.key])
    return found


def fits(tensor):
    """Whether every element of tensor lies in its storage."""
    _, offset, shape, strides = tensor
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides):
        return False
    if any(type(n) is not int or not 0 <= n <= sys.maxsize for n in (offset, *shape, *strides)):
        return False
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    return 0 in shape or last < tensor.storage.numel


def view(tensor, buffer):
    """The array of a Tensor that fits, on the bytes of its storage."""
    dtype = STORAGES[tensor.storage.kind]
    if 0 in tensor.shape or math.prod(tensor.shape) == 1:  # then strides mean nothing, and may be anything
        flat = np.frombuffer(buffer, dtype)[tensor.offset : tensor.offset + math.prod(tensor.shape)]
        return flat.reshape(tensor.shape)
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    flat = np.frombuffer(buffer, dtype)[tensor.offset :]
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)


def read_safetensors(path, file):
    """{key: array} of a safetensors file: the header's length, the header in JSON, and the arrays without gaps."""
    (length,) = struct.unpack("<Q", file.read(8))
    size = os.fstat(file.fileno()).st_size - 8 - length
    if size < 0:
        raise UsageError(f"{path} is damaged: its header has {size + length} bytes left of {length}")
    header = json.loads(file.read(length), object_pairs_hook=no_repeats)
    header.pop("__metadata__", None)
    found, end = {}, 0
    for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        if entry["dtype"] not in SAFETENSORS:
            raise UsageError(f"{path} holds {key} as {entry['dtype']}, which is not read")
        dtype, shape = SAFETENSORS[entry["dtype"]], tuple(entry["shape"])
        if any(type(n) is not int or n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != stop - start:
            raise UsageError(f"{path} is damaged: {key} of shape {shape} has {stop - start} bytes")
        if start != end or stop > size:
            raise UsageError(f"{path} is damaged: {key} lies at {start} … {stop} of {size} bytes, not from {end} on")
        found[key], end = np.frombuffer(file.read(stop - start), dtype).reshape(shape), stop
    if end != size:
        raise UsageError(f"{path} is damaged: it has {size} bytes of arrays, of which {end} are used")
    return {key: found[key] for key in header}


def no_repeats(pairs):
    """dict(pairs), in which no key is twice."""
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("a key of its header is there twice")
    return found
