"""Images of the user's own, whose labels are found in their folders, in a file next to them, or in their names."""

import collections
import csv
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from cfgjax.base.errors import UsageError, choose, printable
from cfgjax.data.dataset import Listing
from cfgjax.data.images.tree import PassedOver, existing_images
from cfgjax.data.sources.arrays import list_arrays
from cfgjax.data.sources.folder import Folder, list_folder, passed_over_lines

EDM_FILE, CSV_FILE = "dataset.json", "labels.csv"
MIN_PER_PREFIX = 5  # images on average, below which prefixes of names are not taken as classes
NO_CLASS = "images"  # the class of images without labels
SIZES = (8, 16, 32, 64, 128, 256)
PEEKED = 200  # images whose size and colours are looked at


class OwnImages(NamedTuple):
    """A listing of images, and in words where their labels come from."""

    listing: Listing
    how: str


def find_own_images(path: str | Path, labels_from: str | None = None) -> OwnImages:
    """Returns the `OwnImages` in an .npz file or in a folder.

    labels_from: a key of LABELS_FROM. By default the first that is there: dataset.json of EDM, labels.csv (file,label),
    folders class/…/image, prefixes of names up to the first "_"; else the images have no labels. Raises UsageError if
    there are no images, or a file has no label.
    """
    path = Path(path)
    if path.suffix == ".npz":
        if labels_from is not None:
            what = f"the labels of {path} are its array `label`; leave the flag out"
            raise UsageError(f"--labels_from={labels_from}: {what}")
        return OwnImages(list_arrays(path), "the array `label`")
    if not path.is_dir():
        raise UsageError(f"--data={path}: need a folder of images, an .npz file or a prepared set")
    if labels_from is not None:
        return choose("value of labels_from", labels_from, LABELS_FROM)(path)
    if (path / EDM_FILE).exists():
        return from_edm(path)
    if (path / CSV_FILE).exists():
        return from_csv(path)
    if has_class_folders(path):
        return from_folders(path)
    files = list_images(path)[0]
    return from_prefixes(path) if prefixes_are_classes(files) else without_labels(path)


def from_folders(path: Path) -> OwnImages:
    """Returns images whose classes are folders."""
    return OwnImages(list_folder(path), "folders class/…/image")


def from_edm(path: Path) -> OwnImages:
    """Returns images whose labels are in dataset.json, {"labels": [[file, number], …]} as EDM's tools write it."""
    try:
        labels = json.loads((path / EDM_FILE).read_text()).get("labels")
        known = {str(file): str(int(number)) for file, number in labels}
    except (OSError, ValueError, TypeError, AttributeError) as e:
        raise UsageError(f'{path / EDM_FILE} has no {{"labels": [[file, number], …]}}: {e}') from None
    return OwnImages(labelled(path, known.get, EDM_FILE, numeric=True), f"EDM's {EDM_FILE}")


def from_csv(path: Path) -> OwnImages:
    """Returns images whose labels are in labels.csv, with lines file,label. Lines of other files have no effect."""
    try:
        with open(path / CSV_FILE, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, ValueError) as e:
        raise UsageError(f"cannot read {path / CSV_FILE}: {e}") from None
    if bad := next((row for row in rows if len(row) != 2), None):
        raise UsageError(f"{path / CSV_FILE}: need lines file,label; found {','.join(bad)!r}")
    known = {file: label.strip() for file, label in rows}
    return OwnImages(labelled(path, known.get, CSV_FILE), CSV_FILE)


def from_prefixes(path: Path) -> OwnImages:
    """Returns images whose classes are the beginnings of their names up to the first "_"."""
    return OwnImages(labelled(path, prefix, 'a prefix with "_" in its name'), "prefixes of the file names")


def without_labels(path: Path) -> OwnImages:
    """Returns images of one class."""
    return OwnImages(labelled(path, lambda file: NO_CLASS, ""), "none: all images are one class, without guidance")


LABELS_FROM: Mapping[str, Callable[[Path], OwnImages]] = {
    "folders": from_folders,
    "edm": from_edm,
    "csv": from_csv,
    "prefixes": from_prefixes,
    "none": without_labels,
}


def labelled(path: Path, label_of_file: Callable[[str], str | None], where: str, numeric: bool = False) -> Folder:
    """Returns the images below path with their labels. where: what gives these, for the error about a file without one.

    numeric: whether the classes are numbers, in this order.
    """
    files, notes = list_images(path)
    names = [label_of_file(file) for file in files]
    if missing := [file for file, name in zip(files, names, strict=True) if not name]:
        what = f"{len(missing)} of {len(files)} images have no label in {where}, such as {printable(missing[0])}"
        raise UsageError(f"{path}: {what}")
    classes = sorted({str(name) for name in names}, key=int if numeric else None)
    index = {name: label for label, name in enumerate(classes)}
    label = np.array([index[str(name)] for name in names], np.int32)
    return Folder(str(path), tuple(files), label, tuple(classes), tuple(notes))


def list_images(path: Path) -> tuple[list[str], list[str]]:
    """Returns the paths of the images below a folder, and lines about other files. Raises UsageError for none."""
    passed_over: PassedOver = []
    files = existing_images(path, passed_over)
    return files, passed_over_lines([(why, name) for why, name in passed_over if name not in (EDM_FILE, CSV_FILE)])


def has_class_folders(path: Path) -> bool:
    """Returns whether a folder has folders, and no images next to them."""
    with os.scandir(path) as entries:
        kinds = [entry.is_dir() for entry in entries if not entry.name.startswith(".")]
    return any(kinds) and all(kinds)


def prefix(file: str) -> str | None:
    """Returns the beginning of a file's name up to the first "_", or None."""
    name = os.path.basename(file)
    return name.partition("_")[0] if "_" in name else None


def prefixes_are_classes(files: Sequence[str]) -> bool:
    """Returns whether all names have prefixes, several different ones, each of many images."""
    count = collections.Counter(map(prefix, files))
    return None not in count and 1 < len(count) <= len(files) / MIN_PER_PREFIX


def choose_shape(listing: Listing, size: int | None) -> tuple[int, int, str]:
    """Returns (size, channels, why) for a listing, from the first images and evenly spaced ones.

    The size is the largest of SIZES that is at most the median of the shorter sides, and at most 64; grey images have
    one channel. size: the user's choice.
    """
    index = np.unique(np.linspace(0, len(listing) - 1, min(PEEKED, len(listing))).round().astype(int))
    sides, grey = [], []
    for i in index:
        try:
            picture = opened(listing[int(i)][0])
        except Exception:
            continue
        sides.append(min(picture.size))
        grey.append(picture.mode in ("1", "L", "LA", "I;16") or is_grey(picture))
    if not sides:
        raise UsageError(f"none of {len(index)} images can be decoded, such as {printable(listing.name(0))}")
    median = int(np.median(sides))
    fitting = [known for known in SIZES[:4] if known <= median] or [SIZES[0]]
    chosen = fitting[-1] if size is None else size
    if chosen not in SIZES:
        raise UsageError(f"--size={chosen}; need one of {', '.join(map(str, SIZES))}")
    channels = 1 if all(grey) else 3
    return chosen, channels, f"the shorter sides have a median of {median} pixels"


def opened(data: bytes | np.ndarray) -> Image.Image:
    """Returns an encoded image, or an array, as a picture."""
    import io

    if isinstance(data, np.ndarray):
        return Image.fromarray(data[..., 0] if data.shape[-1] == 1 else data)
    return Image.open(io.BytesIO(data))


def is_grey(picture: Image.Image) -> bool:
    """Returns whether a small version of a picture has equal channels."""
    small = np.asarray(picture.convert("RGB").resize((16, 16)), int)
    return bool(np.ptp(small, axis=-1).max() <= 2)
