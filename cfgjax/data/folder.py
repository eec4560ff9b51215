"""Folders of images, class/…/image: the classes are the folders in path, in the order of their names."""

import dataclasses
import hashlib
import os
import re
from pathlib import Path

import numpy as np

from cfgjax.data.dataset import Stored
from cfgjax.data.decoding import Converter
from cfgjax.data.prepared import check_num_classes
from cfgjax.errors import UsageError

ENDINGS = (".jpeg", ".jpg", ".png", ".webp")
SYNSET = re.compile(r"n\d{8}")


@dataclasses.dataclass(frozen=True)
class Folder:
    """Image files and their labels, in order; folder[i] is (the bytes of file i, its label)."""

    root: str
    files: tuple
    label: np.ndarray
    classes: tuple
    ignored: tuple = ()

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        return Path(self.root, self.files[i]).read_bytes(), int(self.label[i])

    def name(self, i):
        """File i in words."""
        return self.files[i]

    def part(self, start, stop):
        """Those from start to stop."""
        return dataclasses.replace(self, files=self.files[start:stop], label=self.label[start:stop])

    def digest(self):
        """SHA-256 of the names of the files and of their labels."""
        text = "\n".join(self.files)
        return hashlib.sha256(text.encode("utf-8", "surrogateescape") + self.label.tobytes()).hexdigest()


def synsets_of(classes):
    """The names of the classes where all are WordNet's synsets, else None."""
    return list(classes) if all(map(SYNSET.fullmatch, classes)) else None


def list_folder(path):
    """The `Folder` at path. Raises UsageError where it has no classes, no images, or a class without any."""
    root = Path(path)
    if not root.is_dir():
        raise UsageError(f"{path} is no folder")
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    ignored: list = []
    found = {name: sorted(image_files(root, name, ignored)) for name in classes}
    if not any(found.values()):
        loose = sum(entry.name.lower().endswith(ENDINGS) for entry in os.scandir(root))
        has = f"{loose} images that are in no class" if loose else "none"
        raise UsageError(f"{path} needs images as class/…/image.jpg, .png or .webp; it has {has}")
    if empty := [name for name, files in found.items() if not files]:
        more = f", and {len(empty) - 1} other classes have" if len(empty) > 1 else ""
        raise UsageError(f"class {empty[0]!r} of {path} has no image{more}")
    label = np.repeat(np.arange(len(classes), dtype=np.int32), [len(files) for files in found.values()])
    return Folder(str(path), tuple(file for files in found.values() for file in files), label, tuple(classes),
                  tuple(ignored))  # fmt: skip


def image_files(root, name, ignored):
    """Paths below root of the images in root/name at any depth; other files go to the list `ignored`."""
    for folder, below, files in os.walk(root / name, followlinks=True):
        below[:] = [part for part in below if not part.startswith(".")]
        for file in files:
            path = os.path.relpath(os.path.join(folder, file), root)
            if file.startswith(".") or not file.lower().endswith(ENDINGS):
                ignored.append(path)
            else:
                yield path


class Decoding:
    """(int [b]) → uint8 [b, H, W, C] of a listing such as `Folder`, decoded and cropped each time."""

    def __init__(self, listing, converter):
        self.listing, self.converter = listing, converter

    def __call__(self, index):
        return np.stack([self._one(int(i)) for i in index])

    def _one(self, i):
        try:
            return self.converter(self.listing[i][0])[0]
        except (OSError, ValueError, SyntaxError, EOFError) as e:
            what = f"{self.listing.root}: cannot decode {self.listing.name(i)}: {' '.join(str(e).split())}"
            raise OSError(f"{what}; cfgjax prepare leaves such images out, and lists them") from e


def decoded(listing, label, crop, num_classes, image_shape):
    """(`Stored` images of a listing, their labels)"""
    check_num_classes(listing.root, len(listing.classes), num_classes)
    if len(image_shape) != 3 or image_shape[0] != image_shape[1]:
        raise UsageError(f"data.image_shape is {tuple(image_shape)}; images are cropped to squares: need [S, S, C]")
    converter = Converter(image_shape[0], crop, image_shape[2])
    digest = hashlib.sha256(f"{listing.digest()} {converter}".encode()).hexdigest()
    return Stored(Decoding(listing, converter), (len(label), *image_shape), digest), label


def folder(*, path, crop="adm", num_classes, image_shape):
    """The images below path, class/…/image, decoded and cropped each time that they are asked for."""
    listing = list_folder(path)
    return decoded(listing, listing.label, crop, num_classes, image_shape)
