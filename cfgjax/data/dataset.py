"""A data set: labels in memory, images by index. Imports no jax: workers start from here."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Shaped


@runtime_checkable
class Listing(Protocol):
    """The examples of a source before they are decoded, in order."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes by label."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> tuple[bytes | np.ndarray, int]:
        """Returns (encoded image, or uint8 [H, W, 1 or 3], its label)."""

    def name(self, i: int) -> str:
        """Returns the name of example i in messages."""

    def part(self, start: int, stop: int) -> "Listing":
        """Returns the listing of the examples start … stop − 1."""

    def digest(self) -> str:
        """Returns the SHA-256 of what identifies the examples."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """Images that are read and decoded on access: images[int [b]] → uint8 [b, H, W, C].

    read: (int [b]) → these images of the source; must be picklable. shape: [N, H, W, C]. digest: SHA-256 of the whole
    source. index: int [N], the selected images of the source, None for all. classes: names by label, None if unknown.
    """

    read: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int, ...]
    digest: str
    index: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Int[np.ndarray, " b"]) -> Shaped[np.ndarray, "b ..."]:
        return self.read(index if self.index is None else self.index[index])

    def take(self, keep: np.ndarray | slice) -> "Stored":
        """Returns the subset selected by `keep` (a mask or slice)."""
        if isinstance(keep, slice) and keep == slice(None):
            return self
        index = (np.arange(len(self)) if self.index is None else self.index)[keep]
        return dataclasses.replace(self, index=index, shape=(len(index), *self.shape[1:]))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """image [N, H, W, C], uint8 in 0 … 255 or float32 in [−1, 1], or unbounded float32 points [N, D]; label int32 [N].

    image: an array in memory, or `Stored`. random_flip: mirror images at random in training. random_crop: smallest
    side, as a share of the image's, of the random crops that training enlarges; 1 for none. low_res_size: height of an
    upsampler's inputs, or None. num_workers: processes that compute batches. worker_timeout_seconds: maximum time
    without a batch from the workers. conditions: {name: [N, …]}, in memory, of what each example has besides its label.
    """

    image: np.ndarray | Stored
    label: np.ndarray
    random_flip: bool = False
    random_crop: float = 1.0
    low_res_size: int | None = None
    num_workers: int = 0
    worker_timeout_seconds: float = 600.0
    conditions: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.label)

    def images(self, index: Int[np.ndarray, " b"]) -> Shaped[np.ndarray, "b ..."]:
        """Returns the images of these indices, as they are in the source."""
        return self.image[index]

    @property
    def hash(self) -> str | None:
        """The digest of stored images, which identifies the whole source; None for images in memory."""
        return self.image.digest if isinstance(self.image, Stored) else None

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes by label; None for images in memory."""
        return self.image.classes if isinstance(self.image, Stored) else None

    def content(self) -> list[bytes | memoryview]:
        """Returns the content of the data set as bytes to be hashed: arrays in memory, and digests of stored images."""
        arrays = [self.label, *(self.conditions[name] for name in sorted(self.conditions))]
        if not isinstance(self.image, Stored):
            return [np.ascontiguousarray(array).data for array in (self.image, *arrays)]
        index = () if self.image.index is None else (self.image.index,)
        return [self.image.digest.encode(), *[np.ascontiguousarray(array).data for array in (*index, *arrays)]]
