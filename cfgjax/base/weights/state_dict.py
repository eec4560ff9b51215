"""Reads state dicts from files of all known formats."""

import zipfile
from pathlib import Path
from typing import NamedTuple

from cfgjax.base.errors import UsageError, one_line
from cfgjax.base.files import read_npz
from cfgjax.base.weights.safetensors import read_safetensors
from cfgjax.base.weights.shards import read_shards
from cfgjax.base.weights.torch_files import arrays, read_legacy, read_zip
from cfgjax.base.weights.wrappers import unwrap


class Weights(NamedTuple):
    """A state dict found in a file.

    arrays: {key: array}, read-only. path: names of the dicts and prefixes that led to it. passed_over: names of other
    state dicts in the file.
    """

    arrays: dict
    path: tuple[str, ...]
    passed_over: tuple[str, ...]

    @property
    def choice(self):
        """Returns text that names the state dict taken and those passed over; "" if there was only one."""
        if not self.passed_over:
            return ""
        return f"took {'.'.join(self.path)}, not {', '.join(self.passed_over)}"


def read_state_dict(path):
    """Returns {key: numpy array}, read-only: the `arrays` of `read_weights`."""
    return read_weights(path).arrays


def read_weights(path):
    """Returns the `Weights` in a PyTorch file (zip or the older stream), safetensors, an .npz, or shards.

    The content decides the format, not the name, except for the index of shards, which ends with .json. Of a pickle
    only tensors in dicts are read. Raises UsageError for anything else, and for a damaged or missing file.
    """
    try:
        if Path(path).suffix == ".json":
            return Weights(*unwrap(read_shards(path, lambda shard: guarded(shard, unwrapped=False).arrays)))
        return guarded(path)
    except FileNotFoundError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}") from e


def guarded(path, *, unwrapped=True):
    """Returns the `Weights` in one file; errors as in `read_weights`. unwrapped: whether `unwrap` is applied."""
    try:
        with open(path, "rb") as file:
            return read(path, file, unwrap if unwrapped else lambda value: (value, (), ()))
    except UsageError:
        raise
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror or e}") from e
    except Exception as e:  # a damaged archive or pickle may raise anything
        raise UsageError(f"cannot read {path}: {one_line(e)}") from e


def read(path, file, unwrap):
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
    if begin[5:] == b"\0\0\0{":  # the length of a header of less than 2⁴⁰ bytes, and the header
        return Weights(*unwrap(read_safetensors(path, file)))
    if begin[:1] != b"\x80":  # how every pickle of protocol 2 and later begins
        raise UsageError(f"{path} is neither a PyTorch file nor an .npz nor safetensors")
    value, read_storages = read_legacy(path, file)
    tensors, *chosen = unwrap(value)
    return Weights(arrays(path, tensors, read_storages), *chosen)
