"""Reads safetensors files; the format is in the README of github.com/huggingface/safetensors."""

import math
import os
import struct
import sys

import numpy as np

from cfgjax.base.errors import UsageError
from cfgjax.base.json_files import MAX_BYTES, check_keys, check_type, parse_json
from cfgjax.base.weights.torch_files import STORAGES

DTYPES = {
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


def read_safetensors(path, file):
    """Returns {key: array} of an open file: the header's length, the header in JSON, and the arrays without gaps.

    Checks all of the header before it reads any array. Raises UsageError, or ValueError for damaged JSON.
    """
    (length,) = struct.unpack("<Q", file.read(8))
    size = os.fstat(file.fileno()).st_size - 8 - length
    if size < 0:
        raise UsageError(f"{path} is damaged: its header has {size + length} bytes left of {length}")
    if length > MAX_BYTES:
        raise UsageError(f"{path} is damaged: its header has {length} bytes, more than {MAX_BYTES}")
    header = parse_json(file.read(length))
    header.pop("__metadata__", None)
    for key, entry in header.items():
        check_entry(path, key, entry)
    end, order = 0, sorted(header, key=lambda key: header[key]["data_offsets"])
    for key in order:
        start, stop = header[key]["data_offsets"]
        if start != end or stop > size:
            raise UsageError(f"{path} is damaged: {key} lies at {start} … {stop} of {size} bytes, not from {end} on")
        end = stop
    if end != size:
        raise UsageError(f"{path} is damaged: it has {size} bytes of arrays, of which {end} are used")
    found = {}
    for key in order:
        entry = header[key]
        start, stop = entry["data_offsets"]
        found[key] = np.frombuffer(file.read(stop - start), DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return {key: found[key] for key in header}


def check_entry(path, key, entry):
    """Raises UsageError or ValueError unless an entry of the header has a known dtype, and a shape of its bytes."""
    check_type(f"{key} in its header", entry, dict)
    check_keys(entry, {"dtype": str, "shape": list, "data_offsets": list}, of=f" of {key} in its header")
    if entry["dtype"] not in DTYPES:
        raise UsageError(f"{path} holds {key} as {entry['dtype']}, which is not read")
    offsets, shape = entry["data_offsets"], tuple(entry["shape"])
    if len(offsets) != 2 or any(type(n) is not int or not 0 <= n <= sys.maxsize for n in offsets):
        raise ValueError(f"data_offsets of {key} in its header are {offsets}; need two integers")
    start, stop = offsets
    well_formed = all(type(n) is int and 0 <= n <= sys.maxsize for n in shape)
    if not well_formed or math.prod(shape) * DTYPES[entry["dtype"]].itemsize != stop - start:
        raise UsageError(f"{path} is damaged: {key} of shape {shape} has {stop - start} bytes")
