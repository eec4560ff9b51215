"""Images that something else made, from an .npz or a folder, to be measured as the samples of a run are.

| layout | arrays |
| --- | --- |
| .npz, as guided-diffusion, DiT and EDM write it | arr_0, uint8 [N, H, W, C]; optionally arr_1, int [N], the labels |
| folder | image files of one size at any depth, in the order of their paths; without labels |

The protocol of samples that `cfgjax sample` has drawn is in the array protocol, or in the folder's protocol.json.
"""

import dataclasses
import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from cfgjax.base.errors import UsageError, printable
from cfgjax.base.files import read_npz, sha256
from cfgjax.base.staging import opened_locally
from cfgjax.base.storage import Place
from cfgjax.data.images.pixels import decode_image, reason_of
from cfgjax.data.images.tree import PassedOver, existing_images
from cfgjax.data.sources.registry import check_labels

log = logging.getLogger("cfgjax")

MAX_LOOKED_AT = 1000  # images whose values are looked at before measuring
DARK = 128  # images of values 0 … 255 that are all below half of that are unusual
GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B"}


@dataclasses.dataclass(frozen=True)
class ForeignSamples:
    """Images [N, H, W, C] and their labels, None if unknown.

    read_images: (start, stop) → uint8 [n, H, W, C]. origin: the path. digest: SHA-256 of the files. protocol: {name:
    text} that is stored with them, or {}.
    """

    read_images: Callable[[int, int], UInt8[np.ndarray, "n height width channels"]]
    shape: tuple[int, int, int, int]
    labels: Int[np.ndarray, " n"] | None
    origin: str
    digest: str
    protocol: Mapping[str, str]

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (images, labels) of these indices. Unknown labels are −1."""
        known = self.labels
        return self.read_images(start, stop), np.full(stop - start, -1) if known is None else known[start:stop]


def open_samples(path: str | Place) -> ForeignSamples:
    """Returns the `ForeignSamples` in an .npz or a folder. Raises UsageError if they cannot be measured.

    Samples in a bucket are copied to this machine first.
    """
    with opened_locally(path) as local:
        found = of_folder(local) if local.is_dir() else of_npz(local)
    found = dataclasses.replace(found, origin=f"{path}")
    if found.shape[0] < 2:
        raise UsageError(f"{path} has {found.shape[0]} image; metrics need at least 2")
    return found


def of_npz(path: Place) -> ForeignSamples:
    """Returns the samples in an .npz with arr_0 and optionally arr_1."""
    arrays = read_npz(path)
    if "arr_0" not in arrays:
        has = ", ".join(arrays) or "nothing"
        raise UsageError(f"{path} has {has}; need arr_0, the images uint8 [N, H, W, C], and optionally arr_1, labels")
    images, labels = arrays["arr_0"], arrays.get("arr_1")
    what = f"{path}: arr_0 has dtype {images.dtype} and shape {images.shape}"
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
        raise UsageError(f"{what}; need images uint8 [N, H, W, 1 or 3] with values 0 … 255")
    if images.max() <= 1:
        raise UsageError(f"{what} and no value above {images.max()}; need values 0 … 255")
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
        of = f"{path}: arr_1 has dtype {labels.dtype} and shape {labels.shape}"
        raise UsageError(f"{of}; need {len(images)} integers, the labels of the images")
    read = lambda start, stop: images[start:stop]
    card = stored_protocol(str(arrays["protocol"])) if "protocol" in arrays else {}
    return ForeignSamples(read, images.shape, labels, f"{path}", sha256(path), card)


def of_folder(path: Place) -> ForeignSamples:
    """Returns the samples in a folder of images, whose sizes are checked by their headers first."""
    passed_over: PassedOver = []
    files = existing_images(path, passed_over)
    shapes = [header_shape(path / name) for name in files]
    if other := [i for i, shape in enumerate(shapes) if shape != shapes[0]]:
        sizes = [f"{printable(files[i])} is {'×'.join(map(str, shapes[i]))}" for i in (0, other[0])]
        raise UsageError(f"{path}: {' and '.join(sizes)}; need images of one size (height×width×channels)")
    read = lambda start, stop: np.stack([decoded_file(path / name, shapes[0]) for name in files[start:stop]])
    digest = hashlib.sha256("\n".join(f"{name} {sha256(path / name)}" for name in files).encode()).hexdigest()
    card = path / "protocol.json"
    known = stored_protocol(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else {}
    return ForeignSamples(read, (len(files), *shapes[0]), None, f"{path}", digest, known)


def stored_protocol(text: str) -> dict[str, str]:
    """Returns the protocol that `cfgjax sample` has stored as JSON, or {} for anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        return {}
    return {printable(name): printable(value) for name, value in found.items()}


def warn_of_dark(samples: ForeignSamples) -> None:
    """Logs a warning if the largest value is far below 255: images that were not scaled to 0 … 255 are almost black."""
    looked_at = min(samples.shape[0], MAX_LOOKED_AT)
    largest = int(samples.read_images(0, looked_at).max())
    if largest < DARK:
        what = "%s: the largest value of %s images is %d; values are read as 0 … 255, so these images count as dark"
        log.warning(what, samples.origin, f"{looked_at:,}", largest)


def header_shape(path: Place) -> tuple[int, int, int]:
    """Returns (height, width, channels) by an image's header."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata
            with Image.open(path) as image:
                return image.height, image.width, 1 if image.mode in GREY_MODES else 3
    except Exception as e:  # decoders raise exceptions of any type
        raise UsageError(f"cannot read {printable(path)}: {reason_of(e)}") from e


def decoded_file(path: Place, shape: Sequence[int]) -> UInt8[np.ndarray, "height width channels"]:
    """Returns the image in a file. Raises UsageError if it has another shape or is damaged."""
    try:
        image = np.asarray(decode_image(path.read_bytes())[0])
    except Exception as e:  # decoders raise exceptions of any type
        raise UsageError(f"cannot read {printable(path)}: {reason_of(e)}") from e
    image = image[..., None] if image.ndim == 2 else image
    if image.shape != tuple(shape):
        raise UsageError(f"{printable(path)} has shape {image.shape}, the other images have {tuple(shape)}")
    return image


def check_requested(samples: ForeignSamples, num_samples: int | None, num_classes: int | None) -> int:
    """Returns the number of samples to be measured, by default all. Raises UsageError if there are fewer.

    num_classes: of the network that judges labels; None without one.
    """
    count = samples.shape[0] if num_samples is None else num_samples
    if count > samples.shape[0]:
        raise UsageError(f"{samples.origin} has {samples.shape[0]:,} images; --num_samples is {count:,}")
    if num_classes is not None and samples.labels is not None:
        check_labels(samples.labels, num_classes, f"{samples.origin}: label")
    return count
