"""Sources: functions that return a labelled data set, checked before anything is done with it."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np

from cfgjax.base.errors import UsageError, choose
from cfgjax.data.dataset import Dataset, Stored
from cfgjax.data.sources.arrays import labelled_arrays
from cfgjax.data.sources.folder import folder
from cfgjax.data.sources.prepared import prepared
from cfgjax.data.sources.tfds import tfds
from cfgjax.diffusion.mixture import GaussianMixture
from cfgjax.runs.config import call

HOLDOUT_EVERY = 6  # every sixth example by index is held out


def digits():
    """scikit-learn's 1,797 handwritten digits, 8×8×1."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError("the digits come with scikit-learn: pip install 'cfgjax[digits]'") from None
    bunch = load_digits()
    image = (bunch.images[..., None] / 8 - 1).astype(np.float32)  # 0 … 16 there
    return image, bunch.target.astype(np.int32)


def mixture(*, means, stds, weights, num_examples, seed=0):
    """num_examples draws of a Gaussian mixture, component k as class k; unbounded points, not images."""
    image, label = toy_mixture(means, stds, weights).sample(jax.random.key(seed), num_examples)
    return np.asarray(image), np.asarray(label)


def toy_mixture(means, stds, weights):
    """The GaussianMixture that a config of source `mixture` describes."""
    try:
        return GaussianMixture(*(jnp.asarray(a, jnp.float32) for a in (means, stds, weights)))
    except ValueError as e:
        raise UsageError(f"config.data: {e}") from e


def mixture_of(data):
    """The GaussianMixture of a config's section `data`. Raises UsageError where that lacks its parameters."""
    names = ("means", "stds", "weights")
    if missing := [name for name in names if name not in data]:
        raise UsageError(f"config.data lacks {', '.join(missing)}")
    return toy_mixture(*(data[name] for name in names))


def npz(*, path, crop=None):
    """Arrays `image` and `label` of a .npz file; as `Dataset` has them, NHWC. Pickled objects are never loaded.

    crop: None, arrays are taken as they are; for configs of other sources that have it.
    """
    if crop is not None:
        raise UsageError(f"data.crop is {crop!r}; the arrays of an .npz are taken as they are: need None")
    arrays = labelled_arrays(path)
    return arrays["image"], arrays["label"]


SOURCES = {"digits": digits, "mixture": mixture, "npz": npz, "prepared": prepared, "folder": folder, "tfds": tfds}


def open_source(
    *,
    source,
    num_classes,
    image_shape,
    split="all",
    random_flip=False,
    random_crop=1.0,
    low_res_size=None,
    num_workers=0,
    worker_timeout_seconds=600.0,
    **options,
):
    """The checked Dataset of config.data: SOURCES[source](**options), to have num_classes and image_shape.

    split: "all", "holdout" (every sixth example by index) or "train" (the others). num_workers: processes that make
    batches, 0 for none but this one; for images that are not in memory. worker_timeout_seconds: as in `Dataset`.
    Raises UsageError, naming the first offending index in the source, for labels outside [0, num_classes), NaN,
    values outside [−1, 1] (images), and wrong dtypes or shapes.
    """
    if (random_flip or random_crop != 1 or low_res_size is not None) and len(image_shape) != 3:
        what = "data.random_flip, random_crop and low_res_size are for images"
        raise UsageError(f"{what}; data.image_shape {tuple(image_shape)} is none")
    if not 0 < random_crop <= 1:
        raise UsageError(f"data.random_crop is {random_crop}; need a share of the side in (0, 1]")
    if low_res_size is not None:
        height, width = image_shape[:2]
        if not 1 <= low_res_size < height or height % low_res_size or width % (height // low_res_size):
            need = f"a divisor of the height {height}, below it, whose factor divides the width {width}"
            raise UsageError(f"data.low_res_size is {low_res_size}; need {need}")
    function, asked = choose("data source", source, SOURCES), {"num_classes": num_classes, "image_shape": image_shape}
    fixed = {name: value for name, value in asked.items() if name in inspect.signature(function).parameters}
    image, label = call(function, "data", options, **fixed)
    if num_workers and not isinstance(image, Stored):
        why = f"the images of source {source!r} are in memory, of which each worker would hold a copy"
        raise UsageError(f"data.num_workers is {num_workers}, but {why}: need 0, or cfgjax prepare")
    if image.shape[:1] != label.shape[:1]:
        raise UsageError(f"images of shape {image.shape} and labels of shape {label.shape} are not equally many")
    check_images(image, tuple(image_shape))
    check_labels(label, num_classes)
    held_out = np.arange(len(label)) % HOLDOUT_EVERY == HOLDOUT_EVERY - 1
    keep = choose("split", split, {"train": ~held_out, "holdout": held_out, "all": slice(None)})
    image = image.take(keep) if isinstance(image, Stored) else image[keep]
    label, workers = label[keep].astype(np.int32), (num_workers, worker_timeout_seconds)
    return Dataset(image, label, random_flip, random_crop, low_res_size, *workers)


def npz_in_place_of(data, path):
    """The keys of config.data that are not its source's, with the images of the .npz at path for source."""
    known = inspect.signature(open_source).parameters
    return {key: value for key, value in data.items() if key in known} | {"source": "npz", "path": path}


def check_images(image, image_shape):
    """Raises UsageError unless image is [N, *image_shape], uint8 or finite float32, images within [−1, 1]."""
    if image.shape[1:] != image_shape or not len(image):
        raise UsageError(f"image has shape {image.shape}; config.data.image_shape asks for {('N', *image_shape)}")
    if image.dtype not in (np.uint8, np.float32):
        raise UsageError(f"image has dtype {image.dtype}; need uint8 in 0 … 255 or float32 in [-1, 1]")
    if image.dtype == np.float32:  # which stored images are not
        flat = image.reshape(len(image), -1)
        if (bad := ~np.isfinite(flat).all(axis=1)).any():
            raise UsageError(f"image {first(bad)} has a value that is not finite")
        if len(image_shape) == 3 and (bad := (np.abs(flat) > 1).any(axis=1)).any():
            worst = flat[first(bad)][np.abs(flat[first(bad)]).argmax()]
            raise UsageError(f"image {first(bad)} has the value {worst:g}, outside [-1, 1]")


def check_labels(label, num_classes, what="label"):
    """Raises UsageError unless label is integer [N], all in [0, num_classes)."""
    label = np.asarray(label)
    if not label.size:
        raise UsageError(f"{what} has shape {label.shape}: there are none")
    if label.ndim != 1 or not np.issubdtype(label.dtype, np.integer):
        raise UsageError(f"{what} has dtype {label.dtype} and shape {label.shape}; need integers [N]")
    if (bad := (label < 0) | (label >= num_classes)).any():
        raise UsageError(f"{what} {first(bad)} is {label[first(bad)]}; need 0 … {num_classes - 1}")


def first(mask):
    """The first index at which mask is true."""
    return int(np.flatnonzero(mask)[0])
