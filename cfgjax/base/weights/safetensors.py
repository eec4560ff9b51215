"""Reads safetensors files; the format is in the README of github.com/huggingface/safetensors."""

import io
import math
import os
import struct
import sys
from typing import Any

import numpy as np

from cfgjax.base.errors import UsageError
from cfgjax.base.json_files import MAX_JSON_BYTES, check_keys, check_type, parse_json
from cfgjax.base.storage import AnyPath
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


def read_safetensors(path: AnyPath, file: io.BufferedReader) -> dict[str, np.ndarray]:
    """Returns {key: array} of an open file.

    The file has the header's length, the header in JSON, and the arrays without gaps. The whole header is checked
    before any array is read. Raises UsageError, or ValueError for damaged JSON.
    """
    (length,) = struct.unpack("<Q", file.read(8))
    size = os.fstat(file.fileno()).st_size - 8 - length
    if size < 0:
        raise UsageError(f"{path} is damaged: its header declares {length} bytes; {size + length} are left")
    if length > MAX_JSON_BYTES:
        raise UsageError(f"{path} is damaged: its header has {length} bytes; the maximum is {MAX_JSON_BYTES}")
    header = parse_json(file.read(length))
    header.pop("__metadata__", None)
    for key, entry in header.items():
        check_entry(path, key, entry)
    end, order = 0, sorted(header, key=lambda key: header[key]["data_offsets"])
    for key in order:
        start, stop = header[key]["data_offsets"]
        if start != end or stop > size:
            raise UsageError(f"{path} is damaged: {key} is at bytes {start} to {stop} of {size}; need a start of {end}")
        end = stop
    if end != size:
        raise UsageError(f"{path} is damaged: it has {size} bytes of arrays; its header uses {end}")
    found = {}
    for key in order:
        entry = header[key]
        start, stop = entry["data_offsets"]
        found[key] = np.frombuffer(file.read(stop - start), DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return {key: found[key] for key in header}


def check_entry(path: AnyPath, key: str, entry: Any) -> None:
    """Raises UsageError or ValueError unless a header entry has a known dtype and a shape that matches its bytes."""
    check_type(f"{key} in its header", entry, dict)
    check_keys(entry, {"dtype": str, "shape": list, "data_offsets": list}, of=f" of {key} in its header")
    if entry["dtype"] not in DTYPES:
        raise UsageError(f"{path}: {key} has the unsupported dtype {entry['dtype']}")
    offsets, shape = entry["data_offsets"], tuple(entry["shape"])
    if len(offsets) != 2 or any(type(n) is not int or not 0 <= n <= sys.maxsize for n in offsets):
        raise ValueError(f"data_offsets of {key} in its header are {offsets}; need two integers")
    start, stop = offsets
    well_formed = all(type(n) is int and 0 <= n <= sys.maxsize for n in shape)
    if not well_formed or math.prod(shape) * DTYPES[entry["dtype"]].itemsize != stop - start:
        raise UsageError(f"{path} is damaged: {key} of shape {shape} has {stop - start} bytes")
