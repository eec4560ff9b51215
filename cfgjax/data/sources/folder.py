"""Folders of images, class/…/image. The classes are the subfolders, in the order of their names or numbers."""

import collections
import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

from cfgjax.base.errors import UsageError, choose, printable
from cfgjax.base.staging import with_urls
from cfgjax.data.dataset import Listing, Stored
from cfgjax.data.images.decoding import Converter
from cfgjax.data.images.pixels import reason_of
from cfgjax.data.images.tree import LOOP, PassedOver, contains, image_files, is_image_name
from cfgjax.data.sources.prepared import check_num_classes

SYNSET = re.compile(r"n\d{8}")
NUMERAL = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?")
LOOSE = "images outside of any class"

log = logging.getLogger(__name__)


@runtime_checkable
class FileListing(Listing, Protocol):
    """A listing of examples in files below `root`."""

    @property
    def root(self) -> str:
        """Returns the folder of the files."""


@dataclasses.dataclass(frozen=True)
class Folder:
    """Image files and their labels, in order; folder[i] is (the bytes of file i, its label).

    notes: lines for the user about the folder, such as files passed over.
    """

    root: str
    files: tuple[str, ...]
    label: np.ndarray
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[bytes, int]:
        return Path(self.root, self.files[i]).read_bytes(), int(self.label[i])

    def name(self, i: int) -> str:
        """Returns the path of file i below root."""
        return self.files[i]

    def part(self, start: int, stop: int) -> "Folder":
        """Returns the listing of the files start … stop − 1."""
        return dataclasses.replace(self, files=self.files[start:stop], label=self.label[start:stop])

    def digest(self) -> str:
        """Returns the SHA-256 of the names of the files and of their labels."""
        text = "\n".join(self.files)
        return hashlib.sha256(text.encode("utf-8", "surrogateescape") + self.label.tobytes()).hexdigest()


def synsets_of(classes: Sequence[str]) -> list[str] | None:
    """Returns the names of the classes if all are WordNet's synsets, else None."""
    return list(classes) if all(map(SYNSET.fullmatch, classes)) else None


def by_name(names: Sequence[str]) -> list[str]:
    """Returns names sorted as text: 1, 10, 2."""
    return sorted(names)


def by_number(names: Sequence[str]) -> list[str]:
    """Returns names sorted by the numbers in them: 1, 2, 10; class1, class2, class10."""
    if all(map(NUMERAL.fullmatch, names)):
        return sorted(names, key=lambda name: (Decimal(name), name))
    parts = lambda name: [(int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"([0-9]+)", name)]
    return sorted(names, key=lambda name: (parts(name), name))


CLASS_ORDERS = {"name": by_name, "numeric": by_number}


def list_folder(path: str | Path, class_order: str = "name") -> Folder:
    """Returns the `Folder` at path. class_order: "name", or "numeric" for classes named by numbers, such as 0 … 10.

    Raises UsageError if it has no classes, no images, or a class without images, or cannot be read.
    """
    ordered = choose("class_order", class_order, CLASS_ORDERS)
    root = Path(path)
    if not root.is_dir():
        raise UsageError(f"{path} is not a folder")
    passed_over: list = []
    try:
        classes = ordered(list(class_folders(root, passed_over)))
        found = {name: class_files(root, name, passed_over) for name in classes}
    except OSError as e:
        raise UsageError(f"cannot read {printable(e.filename or path)}: {e.strerror}") from e
    if not any(found.values()):
        loose = sum(reason == LOOSE for reason, _ in passed_over)
        has = f"{loose} {LOOSE}" if loose else "none"
        raise UsageError(f"{path} needs images as class/…/image.jpg, .png, .webp, …; it has {has}")
    if empty := [name for name, files in found.items() if not files]:
        more = f", nor have {len(empty) - 1} others" if len(empty) > 1 else ""
        raise UsageError(f"class {printable(repr(empty[0]))} of {path} has no image{more}")
    label = np.repeat(np.arange(len(classes), dtype=np.int32), [len(files) for files in found.values()])
    notes = (*passed_over_lines(passed_over), *shared_between(root, found), *out_of_order(classes))
    return Folder(str(path), tuple(file for files in found.values() for file in files), label, tuple(classes), notes)


def class_folders(root: Path, passed_over: PassedOver) -> Iterator[str]:
    """Yields the names of the folders in root, except hidden ones and links to root or a folder above it."""
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.is_dir() and not entry.name.startswith("."):
                if contains(os.path.realpath(entry.path), os.path.realpath(root)):
                    passed_over.append((LOOP, entry.name))
                else:
                    yield entry.name
            elif is_image_name(entry.name) and not entry.is_dir():
                passed_over.append((LOOSE, entry.name))


def class_files(root: Path, name: str, passed_over: PassedOver) -> dict[str, str | None]:
    """Returns {path below root: real path if it contains links, else None} of the images of a class."""
    inside: list = []
    files = image_files(root / name, inside)
    passed_over += [(reason, os.path.join(name, path)) for reason, path in inside]
    own = os.path.join(os.path.realpath(root), name)
    return {os.path.join(name, path): None if real == os.path.join(own, path) else real for path, real in files.items()}


def passed_over_lines(passed_over: PassedOver) -> list[str]:
    """Returns a line for each reason why files were passed over."""
    paths = collections.defaultdict(list)
    for reason, path in passed_over:
        paths[reason].append(path)
    return [f"passed over: {len(found)} {reason}, such as {printable(min(found))}" for reason, found in paths.items()]


def shared_between(root: Path, found: dict[str, dict[str, str | None]]) -> list[str]:
    """Returns [a warning] if links make a file an example of several classes, else []."""
    if not any(real for files in found.values() for real in files.values()):
        return []
    own = os.path.realpath(root)
    reals = {path: real or os.path.join(own, path) for files in found.values() for path, real in files.items()}
    count = collections.Counter(reals.values())
    if not (repeated := sum(n > 1 for n in count.values())):
        return []
    example = next(path for path, real in reals.items() if count[real] > 1)
    return [f"warning: links put files into several classes: {repeated}, such as {printable(example)}"]


def out_of_order(classes: Sequence[str]) -> list[str]:
    """Returns [a warning] if the classes are named by numbers but not in numeric order, else []."""
    if by_number(classes) == list(classes) or by_name(classes) != list(classes):
        return []
    i = next(i for i, (here, there) in enumerate(zip(classes, by_number(classes), strict=True)) if here != there)
    here = f"label {i} is class {printable(repr(classes[i]))}, not {printable(repr(by_number(classes)[i]))}"
    return [f"warning: classes are named by numbers but ordered by name: {here}; class_order=numeric orders them"]


class Decoding:
    """(int [b]) → uint8 [b, H, W, C] of a listing such as `Folder`, decoded and cropped each time."""

    def __init__(self, listing: FileListing, converter: Converter) -> None:
        self.listing, self.converter = listing, converter

    def __call__(self, index: Int[np.ndarray, " b"]) -> UInt8[np.ndarray, "b height width channels"]:
        return np.stack([self._one(int(i)) for i in index])

    def _one(self, i: int) -> UInt8[np.ndarray, "height width channels"]:
        try:
            return self.converter(self.listing[i][0])[0]
        except Exception as e:  # decoders raise exceptions of any type
            name = printable(self.listing.name(i))
            what = f"{self.listing.root}: cannot decode {name}: {reason_of(e)}"
            raise OSError(f"{what}; cfgjax prepare leaves out such images and lists them") from e


def decoded(
    listing: FileListing, label: Int[np.ndarray, " n"], crop: str, num_classes: int, image_shape: Sequence[int]
) -> tuple[Stored, Int[np.ndarray, " n"]]:
    """Returns (`Stored` images of a listing, their labels)."""
    check_num_classes(listing.root, len(listing.classes), num_classes)
    if len(image_shape) != 3 or image_shape[0] != image_shape[1]:
        raise UsageError(f"data.image_shape is {tuple(image_shape)}; images are cropped to squares: need [S, S, C]")
    converter = Converter(image_shape[0], crop, image_shape[2])
    digest = hashlib.sha256(f"{listing.digest()} {converter}".encode()).hexdigest()
    images = Stored(Decoding(listing, converter), (len(label), *image_shape), digest, classes=listing.classes)
    return images, label


def folder(
    *, path: str | Path, crop: str = "adm", class_order: str = "name", num_classes: int, image_shape: Sequence[int]
) -> tuple[Stored, Int[np.ndarray, " n"]]:
    """Returns the images below path, class/…/image, decoded and cropped on each access, and their labels."""
    listing = list_folder(path, class_order)
    for note in listing.notes:
        log.warning("%s: %s", with_urls(str(path)), note.removeprefix("warning: "))
    return decoded(listing, listing.label, crop, num_classes, image_shape)
