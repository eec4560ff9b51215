"""Images and labels in memory, as a listing to be prepared."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from cfgjax.base.errors import UsageError
from cfgjax.base.files import read_npz


@dataclasses.dataclass(frozen=True)
class Arrays:
    """uint8 images [N, H, W, C] and their labels; arrays[i] is (image i, its label). start: index of the first."""

    image: np.ndarray
    label: np.ndarray
    classes: tuple[str, ...]
    start: int = 0

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return self.image[i], int(self.label[i])

    def name(self, i: int) -> str:
        """Returns the name of image i in messages."""
        return f"image {self.start + i}"

    def part(self, start: int, stop: int) -> "Arrays":
        """Returns the listing of the images start … stop − 1."""
        return Arrays(self.image[start:stop], self.label[start:stop], self.classes, self.start + start)

    def digest(self) -> str:
        """Returns the SHA-256 of images and labels."""
        digest = hashlib.sha256(np.ascontiguousarray(self.image).data)
        digest.update(np.ascontiguousarray(self.label).data)
        return digest.hexdigest()


def labelled_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the arrays of an .npz. Raises UsageError unless `image` and `label` are among them."""
    arrays = read_npz(path)
    if missing := {"image", "label"} - arrays.keys():
        raise UsageError(f"{path} lacks {', '.join(sorted(missing))}; it has {', '.join(arrays)}")
    return arrays


def list_arrays(path: str | Path) -> Arrays:
    """Returns the `Arrays` of an .npz with `image`, `label` and, optionally, the names `classes`.

    Raises UsageError unless they are uint8 images and labels 0 … K−1, with an image for each label.
    """
    arrays = labelled_arrays(path)
    image, label = arrays["image"], arrays["label"]
    if image.dtype != np.uint8 or image.ndim != 4 or image.shape[-1] not in (1, 3) or not image.size:
        what = f"image has dtype {image.dtype} and shape {image.shape}"
        raise UsageError(f"{path}: {what}; need uint8 [N, H, W, 1 or 3]")
    if label.shape != image.shape[:1] or not np.issubdtype(label.dtype, np.integer) or label.min() < 0:
        what = f"label has dtype {label.dtype} and shape {label.shape}"
        raise UsageError(f"{path}: {what}; need {len(image)} integers of at least 0")
    num_classes = int(label.max()) + 1
    classes = stored_class_names(path, arrays["classes"]) if "classes" in arrays else None
    if classes is not None and num_classes > len(classes):
        raise UsageError(f"{path}: label {label.max()} is beyond the {len(classes)} classes")
    count = num_classes if classes is None else len(classes)
    if len(present := np.unique(label)) < count:
        absent = np.flatnonzero(present != np.arange(len(present)))
        raise UsageError(f"{path}: class {absent[0] if len(absent) else len(present)} of {count} has no image")
    return Arrays(image, label.astype(np.int32), classes or tuple(map(str, range(count))))


def stored_class_names(path: str | Path, names: np.ndarray) -> tuple[str, ...]:
    """Returns the names in the array `classes` of the .npz at path. Raises UsageError if they are not text."""
    if names.ndim != 1 or names.dtype.kind not in "USiu":
        raise UsageError(f"{path}: classes has dtype {names.dtype} and shape {names.shape}; need names [K]")
    try:
        return tuple(n.decode("utf-8", "surrogateescape") if isinstance(n, bytes) else str(n) for n in names.tolist())
    except ValueError as e:
        raise UsageError(f"{path}: classes has a name that is not text: {e}") from e
