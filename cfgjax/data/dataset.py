"""A data set: labels in memory, images by index. Imports no jax: workers start from here."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Stored:
    """Images that are read and decoded when they are asked for: images[int [b]] → uint8 [b, H, W, C].

    read: (int [b]) → those images of the source; it can be pickled. shape: [N, H, W, C]. digest: SHA-256 of the whole
    source. index: int [N], which of the source these are; None for all. classes: their names by label, None if unknown.
    """

    read: Callable
    shape: tuple
    digest: str
    index: np.ndarray | None = None
    classes: tuple | None = None
    dtype = np.dtype(np.uint8)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        return self.read(index if self.index is None else self.index[index])

    def take(self, keep):
        """Those that `keep`, a mask or a slice, says; all of them are the set itself."""
        if isinstance(keep, slice) and keep == slice(None):
            return self
        index = (np.arange(len(self)) if self.index is None else self.index)[keep]
        return dataclasses.replace(self, index=index, shape=(len(index), *self.shape[1:]))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """image [N, H, W, C], uint8 in 0 … 255 or float32 in [−1, 1], or unbounded float32 points [N, D]; label int32 [N].

    image: an array in memory, or `Stored`. random_flip: whether training may mirror the images. random_crop: the least
    side of a crop that training takes of an image and enlarges, as a share of its own; 1 for none. low_res_size: height
    of the small images that are to be enlarged to these, None for none. num_workers: processes that make batches.
    worker_timeout_seconds: without a batch from them, after which it is an error.
    """

    image: np.ndarray | Stored
    label: np.ndarray
    random_flip: bool = False
    random_crop: float = 1.0
    low_res_size: int | None = None
    num_workers: int = 0
    worker_timeout_seconds: float = 600.0

    def __len__(self):
        return len(self.label)

    def images(self, index):
        """The images of int [b], as they are in the source."""
        return self.image[index]

    @property
    def hash(self):
        """What identifies the whole of the source: the digest of stored images, None for those in memory."""
        return self.image.digest if isinstance(self.image, Stored) else None

    @property
    def classes(self):
        """Names of the classes by label; None for images in memory, whose names are not known."""
        return self.image.classes if isinstance(self.image, Stored) else None

    def content(self):
        """What the data set consists of, as bytes to be hashed; of stored images their own digest."""
        if not isinstance(self.image, Stored):
            return [np.ascontiguousarray(array).data for array in (self.image, self.label)]
        index = () if self.image.index is None else (self.image.index,)
        return [self.image.digest.encode(), *[np.ascontiguousarray(array).data for array in (*index, self.label)]]
