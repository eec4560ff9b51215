"""The data sources, functions that return images and labels, and the checks of their results."""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Shaped
from numpy.typing import ArrayLike

from cfgjax.base import staging
from cfgjax.base.errors import UsageError, choose
from cfgjax.base.files import sha256
from cfgjax.base.paths import check_path
from cfgjax.base.progress import timed
from cfgjax.base.storage import expanded, is_url
from cfgjax.data.dataset import Dataset, Stored
from cfgjax.data.sources.arrays import labelled_arrays
from cfgjax.data.sources.folder import folder
from cfgjax.data.sources.prepared import prepared
from cfgjax.data.sources.tfds import tfds
from cfgjax.diffusion.mixture import GaussianMixture
from cfgjax.runs.config import call
from cfgjax.runs.data_settings import DataSettings

Examples = tuple[np.ndarray, np.ndarray]  # (image, label); a third entry may have conditions, {name: [N, …]}

SLOW_TO_HASH_BYTES = 2**30  # of a file whose hash takes seconds
HOLDOUT_EVERY = 6  # every sixth example by index is held out


def digits() -> Examples:
    """Returns scikit-learn's 1,797 handwritten digits, 8×8×1."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError("the digits come with scikit-learn: pip install 'cfgjax[digits]'") from None
    bunch = load_digits()
    image = (bunch.images[..., None] / 8 - 1).astype(np.float32)  # 0 … 16 there
    return image, bunch.target.astype(np.int32)


def mixture(
    *,
    means: Sequence[Sequence[float]],
    stds: Sequence[float],
    weights: Sequence[float],
    num_examples: int,
    seed: int = 0,
) -> Examples:
    """Returns num_examples points drawn from a Gaussian mixture. The component is the label."""
    image, label = toy_mixture(means, stds, weights).sample(jax.random.key(seed), num_examples)
    return np.asarray(image), np.asarray(label)


def toy_mixture(means: Sequence[Sequence[float]], stds: Sequence[float], weights: Sequence[float]) -> GaussianMixture:
    """Returns the Gaussian mixture of these parameters. Raises UsageError if they are invalid."""
    try:
        return GaussianMixture(*(jnp.asarray(a, jnp.float32) for a in (means, stds, weights)))
    except ValueError as e:
        raise UsageError(f"config.data: {e}") from e


def mixture_of(data: DataSettings) -> GaussianMixture:
    """Returns the Gaussian mixture of config.data. Raises UsageError if that lacks parameters."""
    names = ("means", "stds", "weights")
    if missing := [name for name in names if name not in data.options]:
        raise UsageError(f"config.data lacks {', '.join(missing)}")
    return toy_mixture(*(data.options[name] for name in names))


def npz(*, path: str | Path, crop: str | None = None) -> Examples:
    """Returns the arrays `image` (NHWC) and `label` of an .npz file. Pickled objects are never loaded.

    crop: must be None, since images are not cropped. It exists for configs that override another source.
    """
    if crop is not None:
        raise UsageError(f"data.crop is {crop!r}; the images of an .npz are not cropped: need None")
    arrays = labelled_arrays(path)
    return arrays["image"], arrays["label"]


SOURCES: dict[str, Callable[..., Any]] = {
    "digits": digits,
    "mixture": mixture,
    "npz": npz,
    "prepared": prepared,
    "folder": folder,
    "tfds": tfds,
}


def open_source(data: DataSettings) -> Dataset:
    """Returns the checked `Dataset` of config.data, SOURCES[source](**options), after copying a path in a bucket.

    The source is also given num_classes and image_shape if it names them. Raises UsageError, naming the first offending
    index in the source, for labels outside [0, num_classes), NaN, values outside [−1, 1] (images), and wrong dtypes or
    shapes.
    """
    function = choose("data source", data.source, SOURCES)
    known: dict[str, Any] = {"num_classes": data.num_classes, "image_shape": data.image_shape}
    fixed = {name: value for name, value in known.items() if name in inspect.signature(function).parameters}
    with local_options(data.options) as options:
        image, label, *more = call(function, "data", options, **fixed)
    conditions = more[0] if more else {}
    if data.num_workers and not isinstance(image, Stored):
        why = f"the images of source {data.source!r} are in memory, and each worker would hold a copy of them"
        raise UsageError(f"data.num_workers is {data.num_workers}, but {why}: use 0, or cfgjax prepare")
    if image.shape[:1] != label.shape[:1]:
        what = f"images of shape {image.shape} and labels of shape {label.shape}"
        raise UsageError(f"{what} differ in number; need a label for each image")
    if data.kind == "latent" and image.dtype != np.float32:
        raise UsageError(f"image has dtype {image.dtype}; data.kind 'latent' needs float32")
    check_images(image, data.image_shape, bounded=data.is_image)
    check_conditions(conditions, len(label))
    check_labels(label, data.num_classes)
    held_out = np.arange(len(label)) % HOLDOUT_EVERY == HOLDOUT_EVERY - 1
    keep = choose("split", data.split, {"train": ~held_out, "holdout": held_out, "all": slice(None)})
    image = image.take(keep) if isinstance(image, Stored) else image[keep]
    label, augmentation = label[keep].astype(np.int32), (data.random_flip, data.random_crop, data.low_res_size)
    conditions = {name: array[keep] for name, array in conditions.items()}
    return Dataset(image, label, *augmentation, data.num_workers, data.worker_timeout_seconds, conditions)


def data_hash(data: DataSettings, dataset: Dataset) -> str | None:
    """Returns the hash of a data set: that of its stored images, or of the file at data.path; None without either.

    dataset: `open_source(data)`.
    """
    if dataset.hash is not None or data.options.get("path") is None:
        return dataset.hash
    with local_options(data.options) as options:
        path = Path(options["path"])
        if not path.is_file():
            return None
        with timed(f"hashing {path}") if path.stat().st_size > SLOW_TO_HASH_BYTES else contextlib.nullcontext():
            return sha256(path)


@contextlib.contextmanager
def local_options(options: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields a source's options with a local path in place of one in a bucket, and ~ expanded.

    Errors in the block name the URL.
    """
    path = options.get("path")
    if isinstance(path, str | Path):
        check_path("config.data.path", path)
    if not isinstance(path, str | Path):
        yield options
        return
    if not is_url(path):
        yield {**options, "path": expanded(path)}
        return
    with staging.opened_locally(path) as local:
        yield {**options, "path": str(local)}


def npz_in_place_of(data: DataSettings, path: str | Path) -> DataSettings:
    """Returns config.data with the .npz at path as its source, without the options of the other source."""
    return dataclasses.replace(data, source="npz", options={"path": path})


def check_conditions(conditions: Mapping[str, np.ndarray], count: int) -> None:
    """Raises UsageError unless conditions are arrays [count, …] whose names are not those of other parts of a batch."""
    for name, array in conditions.items():
        if name in ("image", "label", "low_res"):
            raise UsageError(f"the data source has a condition {name!r}, which is the name of another part of a batch")
        if not isinstance(array, np.ndarray) or array.shape[:1] != (count,):
            raise UsageError(f"condition {name} has shape {np.shape(array)}; need an array with {count} rows")


def check_images(
    image: Stored | Shaped[np.ndarray, "..."], image_shape: tuple[int, ...], *, bounded: bool | None = None
) -> None:
    """Raises UsageError unless image is [N, *image_shape], uint8 or finite float32, and if bounded within [−1, 1].

    bounded: by default whether image_shape is that of images.
    """
    bounded = len(image_shape) == 3 if bounded is None else bounded
    if image.shape[1:] != image_shape or not len(image):
        raise UsageError(f"image has shape {image.shape}; config.data.image_shape asks for {('N', *image_shape)}")
    if image.dtype not in (np.uint8, np.float32):
        raise UsageError(f"image has dtype {image.dtype}; need uint8 in 0 … 255 or float32 in [-1, 1]")
    if not isinstance(image, Stored) and image.dtype == np.float32:
        flat = image.reshape(len(image), -1)
        if (bad := ~np.isfinite(flat).all(axis=1)).any():
            raise UsageError(f"image {first_index(bad)} has a value that is not finite; need finite values")
        if bounded and (bad := (np.abs(flat) > 1).any(axis=1)).any():
            worst = flat[first_index(bad)][np.abs(flat[first_index(bad)]).argmax()]
            raise UsageError(f"image {first_index(bad)} has the value {worst:g}, outside [-1, 1]")


def check_labels(label: ArrayLike | Sequence[int], num_classes: int, what: str = "label") -> None:
    """Raises UsageError unless label is integer [N], all in [0, num_classes)."""
    label = np.asarray(label)
    if not label.size:
        raise UsageError(f"{what} has shape {label.shape}: there are none; need at least one")
    if label.ndim != 1 or not np.issubdtype(label.dtype, np.integer):
        raise UsageError(f"{what} has dtype {label.dtype} and shape {label.shape}; need integers [N]")
    if (bad := (label < 0) | (label >= num_classes)).any():
        raise UsageError(f"{what} {first_index(bad)} is {label[first_index(bad)]}; need 0 … {num_classes - 1}")


def first_index(mask: Bool[np.ndarray, " n"]) -> int:
    """Returns the first index at which mask is true."""
    return int(np.flatnonzero(mask)[0])
