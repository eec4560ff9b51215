"""Reads state dicts from files of all supported formats."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cfgjax.base.errors import UsageError, one_line
from cfgjax.base.files import read_npz
from cfgjax.base.storage import AnyPath
from cfgjax.base.weights.safetensors import read_safetensors
from cfgjax.base.weights.shards import read_shards
from cfgjax.base.weights.torch_files import arrays, read_legacy, read_zip
from cfgjax.base.weights.wrappers import Unwrapped, unwrap


class Weights(NamedTuple):
    """A state dict found in a file.

    arrays: {key: array}, read-only. path: names of the dicts and prefixes around it. passed_over: names of the other
    state dicts in the file.
    """

    arrays: dict[str, np.ndarray]
    path: tuple[str, ...]
    passed_over: tuple[str, ...]

    @property
    def choice(self) -> str:
        """Text that names the state dict used and those passed over; "" if there was only one."""
        if not self.passed_over:
            return ""
        return f"took {'.'.join(self.path)}, not {', '.join(self.passed_over)}"


def read_state_dict(path: AnyPath) -> dict[str, np.ndarray]:
    """Returns {key: numpy array}, read-only: the `arrays` of `read_weights`."""
    return read_weights(path).arrays


def read_weights(path: AnyPath) -> Weights:
    """Returns the `Weights` in a PyTorch file (zip or the older stream), a safetensors file, an .npz, or shards.

    The format is detected from the content, except that the name of an index of shards must end with .json. Only
    tensors in dicts are read from a pickle. Raises UsageError for anything else, and for a damaged or missing file.
    """
    try:
        if Path(path).suffix == ".json":
            return Weights(*unwrap(read_shards(path, lambda shard: read_file(shard, unwrapped=False).arrays)))
        return read_file(path)
    except FileNotFoundError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}") from e


def read_file(path: AnyPath, *, unwrapped: bool = True) -> Weights:
    """Returns the `Weights` in one file, with the errors of `read_weights`. unwrapped: whether to apply `unwrap`."""
    try:
        with open(path, "rb") as file:
            return read_opened(path, file, unwrap if unwrapped else lambda value: (value, (), ()))
    except UsageError:
        raise
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror or e}") from e
    except Exception as e:  # a damaged archive or pickle may raise anything
        raise UsageError(f"cannot read {path}: {one_line(e)}") from e


def read_opened(path: AnyPath, file: io.BufferedReader, unwrap: Callable[[Any], Unwrapped]) -> Weights:
    """Returns the `Weights` in an open file."""
    begin = file.read(9)
    file.seek(0)
    if begin[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(file) as archive:
            pickles = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
            if pickles:
                value, read_storages = read_zip(path, archive, pickles[0])
                tensors, *chosen = unwrap(value)
                return Weights(arrays(path, tensors, read_storages), *chosen)
        return Weights(*unwrap(read_npz(path)))
    if begin[5:] == b"\0\0\0{":  # length of a header of less than 2⁴⁰ bytes, then the header
        return Weights(*unwrap(read_safetensors(path, file)))
    if begin[:1] != b"\x80":  # first byte of every pickle of protocol 2 and later
        raise UsageError(f"{path} is not a PyTorch, .npz or safetensors file")
    value, read_storages = read_legacy(path, file)
    tensors, *chosen = unwrap(value)
    return Weights(arrays(path, tensors, read_storages), *chosen)
