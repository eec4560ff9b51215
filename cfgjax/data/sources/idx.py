"""The IDX files of MNIST and the data sets in its format, such as Fashion-MNIST, as a listing to be prepared."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from cfgjax.base.errors import UsageError
from cfgjax.data.sources.arrays import Arrays

IDX_SPLITS = {"train": "train", "test": "t10k"}  # split: start of the file names

UINT8 = 8  # the third byte of an IDX file: the type of its values


def list_idx(folder: str | Path, split: str = "train", class_names: tuple[str, ...] | None = None) -> Arrays:
    """Returns the `Arrays` of a folder with {train|t10k}-images-idx3-ubyte and …-labels-idx1-ubyte, plain or .gz.

    split: a name of IDX_SPLITS. class_names: in the order of the labels; by default the labels themselves.
    Raises UsageError unless the files are complete and fit each other.
    """
    if split not in IDX_SPLITS:
        raise UsageError(f"--split={split}; IDX files have {', '.join(IDX_SPLITS)}")
    image = read_idx(find_file(folder, f"{IDX_SPLITS[split]}-images-idx3-ubyte"), 3)
    path = find_file(folder, f"{IDX_SPLITS[split]}-labels-idx1-ubyte")
    label = read_idx(path, 1)
    if len(image) != len(label):
        raise UsageError(f"{folder}: {len(image)} images and {len(label)} labels; need a label for each image")
    present = np.unique(label)
    count = len(present) if class_names is None else len(class_names)
    if not np.array_equal(present, np.arange(count)):
        named = "" if class_names is None else f" and {count} class names"
        raise UsageError(f"{path}: labels {', '.join(map(str, present))}{named}; need 0 … K−1, each with a name")
    return Arrays(image[..., None], label.astype(np.int32), class_names or tuple(map(str, range(count))))


def find_file(folder: str | Path, name: str) -> Path:
    """Returns the path of a file in folder, plain or .gz. Raises UsageError if there is neither."""
    for path in (Path(folder) / name, Path(folder) / f"{name}.gz"):
        if path.is_file():
            return path
    raise UsageError(f"{folder} has no {name} or {name}.gz; need the IDX files of MNIST or a data set in its format")


def read_idx(path: Path, ndim: int) -> np.ndarray:
    """Returns the uint8 array [N, …] of an IDX file. Raises UsageError if it is not one, is damaged or is empty."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as e:
        raise UsageError(f"{path}: {e}") from None
    header = 4 * (1 + ndim)
    if len(content) < header or content[:4] != bytes([0, 0, UINT8, ndim]):
        raise UsageError(f"{path} is not an IDX file of bytes with {ndim} dimensions")
    shape = tuple(int(size) for size in np.frombuffer(content[4:header], ">u4"))
    if not all(shape) or len(content) - header != np.prod(shape, dtype=object):
        what = f"{len(content) - header} bytes of values for the shape {shape}"
        raise UsageError(f"{path} is damaged or empty: it has {what}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
