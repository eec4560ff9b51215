"""Small images as records of array_record files, each encoded separately and without loss."""

import bisect
import contextlib
import io
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from cfgjax.base.errors import UsageError, one_line
from cfgjax.data.images.pixels import reason_of

AT_ONCE = 256  # records read in one call
ENDING = ".array_record"
WRITER_OPTIONS, READER_OPTIONS = "group_size:1,uncompressed", "readahead_buffer_size:0"
ENCODINGS: dict[str, dict[str, Any]] = {  # {name: options of Pillow's save}
    "webp": {"lossless": True, "method": 0, "quality": 0},
    "png": {"compress_level": 6},
    "raw": {},
}


def array_record() -> Any:
    """Returns array_record's module of readers and writers. Raises UsageError if it is not installed."""
    try:
        from array_record.python import array_record_module
    except ImportError:
        raise UsageError("prepared data sets are array_record files: pip install 'cfgjax[data]'") from None
    return array_record_module


def encode_record(image: UInt8[np.ndarray, "height width channels"], encoding: str) -> bytes:
    """Returns the encoded bytes of an image with 1 or 3 channels."""
    if encoding == "raw":
        return image.tobytes()
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, encoding, **ENCODINGS[encoding])
    return file.getvalue()


def hashed_example(label: int | np.integer, record: bytes) -> bytes:
    """Returns the bytes of an example that enter a digest."""
    return f"{label} {len(record)} ".encode() + record


def decode_record(record: bytes, encoding: str, shape: Sequence[int]) -> UInt8[np.ndarray, "height width channels"]:
    """Returns the image of a record written by `encode_record`. Raises ValueError if it has another shape."""
    if encoding == "raw":
        return np.frombuffer(record, np.uint8).reshape(shape)
    image = np.asarray(Image.open(io.BytesIO(record), formats=(encoding.upper(),)))
    image = image[..., : shape[-1]] if image.ndim == 3 else image[..., None]  # WebP's grey is three equal channels
    if image.shape != tuple(shape):
        raise ValueError(f"it has shape {image.shape}, not {tuple(shape)}")
    return image


def count_records(path: Path) -> int:
    """Returns the number of records in a file, 0 if it is damaged."""
    try:
        with contextlib.closing(array_record().ArrayRecordReader(os.fsencode(path), READER_OPTIONS)) as opened:
            return opened.num_records()
    except (RuntimeError, ValueError, OSError):
        return 0


class RecordReader:
    """(int [b]) → uint8 [b, H, W, C] of the records of several files, which are opened when they are first needed.

    Indices run through all files. counts: numbers of records in the files. encoding, shape: see `decode_record`.
    """

    def __init__(self, paths: Sequence[str | Path], counts: Sequence[int], encoding: str, shape: Sequence[int]) -> None:
        self.paths, self.starts = [str(path) for path in paths], [0, *itertools.accumulate(counts)]
        self.encoding, self.shape = encoding, tuple(shape)
        self._readers: dict = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_readers": {}}

    def __call__(self, index: Int[np.ndarray, " b"]) -> UInt8[np.ndarray, "b height width channels"]:
        images = np.empty((len(index), *self.shape), np.uint8)
        file = np.array([bisect.bisect_right(self.starts, i) - 1 for i in index], int)
        for number in np.unique(file).tolist():
            rows = np.flatnonzero(file == number)
            for row, record in zip(rows, self._read(number, index[rows] - self.starts[number]), strict=True):
                try:
                    images[row] = decode_record(record, self.encoding, self.shape)
                except (OSError, ValueError, SyntaxError) as e:
                    raise damaged(self.paths[number], f"image {index[row]}: {reason_of(e)}") from e
        return images

    def records(self, number: int) -> Iterator[bytes]:
        """Yields the records of one file in order, with AT_ONCE in memory at a time."""
        count = self.starts[number + 1] - self.starts[number]
        for start in range(0, count, AT_ONCE):
            yield from self._read(number, np.arange(start, min(start + AT_ONCE, count)))

    def _read(self, number: int, places: Int[np.ndarray, " n"]) -> list[bytes]:
        """Returns the records of one file at these places."""
        path, module = self.paths[number], array_record()
        try:
            if number not in self._readers:
                self._readers[number] = module.ArrayRecordReader(os.fsencode(path), READER_OPTIONS)
            return self._readers[number].read(places.tolist())
        except (RuntimeError, ValueError, IndexError, OSError) as e:
            raise damaged(path, e) from e


def damaged(path: str | Path, why: object) -> OSError:
    """Returns the error for a file that cannot be read."""
    return OSError(f"{path} is damaged: {one_line(why)}; prepare the data set again")
