"""Data sets made by `cfgjax prepare`: a folder of array_record files, label.npy and dataset.json.

dataset.json has `format`, `num_examples`, `classes` (names in the order of the labels), `synsets` (the same if they are
WordNet's, else null), `counts` (examples of each class), `request` (source, size, crop, channels, encoding), `shards`
(each file's number of examples, bytes, SHA-256, and digest of its labels and records), `converted` (number of images by
conversion), `errors` (name and reason of each image left out), `hash` (SHA-256 of labels and records) and `sha256` (of
dataset.json itself). Format 1 has no `sha256`, for dataset.json or for the files. dataset.json is written last.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from cfgjax.base.errors import UsageError
from cfgjax.base.files import read_npy, sha256
from cfgjax.base.json_files import IF_PRESENT, check_keys, check_type, read_json
from cfgjax.base.storage import Place, place
from cfgjax.data.dataset import Stored
from cfgjax.data.images.records import ENCODINGS, RecordReader, array_record, count_records, damaged, hashed_example

FORMAT, FORMATS = 2, (1, 2)  # written; read
ABOUT, LABELS, REQUEST = "dataset.json", "label.npy", "request.json"
About = dict[str, Any]  # a dataset.json
Hash = Any  # an object of hashlib, whose type is not public
DATASET_KEYS = {"num_examples": int, "hash": str, "request": dict, "classes": list, "counts": list, "converted": dict}
DATASET_KEYS |= {"errors": list, "shards": list}
REQUEST_KEYS = {"source": dict, "size": int, "crop": str, "channels": int, "encoding": str, "num_listed": int}
SHARD_KEYS = {"file": str, "num_examples": int, "bytes": int}
AGAIN = "delete the folder and prepare the data set again"


class OtherSet(UsageError):
    """The folder of the output has a set that was prepared from other images, or in another way."""


def read_about(path: str | Place) -> About:
    """Returns dataset.json of the prepared set in folder path. Raises UsageError if it is missing or damaged."""
    folder = place(path)
    if (folder / REQUEST).exists() and not (folder / ABOUT).exists():
        raise UsageError(f"{path} is not complete; the same cfgjax prepare command resumes")
    try:
        about = read_own(folder / ABOUT, {"format": int})
        if about["format"] not in FORMATS:
            raise UsageError(f"{path} has format {about['format']}; this version reads 1 and 2: prepare it again")
    except FileNotFoundError as e:
        hint = "cfgjax prepare folder|tfds|npz IN OUT --size=… makes one"
        raise UsageError(f"{path} is not a prepared data set: {e.strerror} ({ABOUT}); {hint}") from e
    try:
        check_content(about)
    except ValueError as e:
        raise UsageError(f"{folder / ABOUT} is damaged: {e}; {AGAIN}") from e
    return about


def check_content(about: About) -> None:
    """Raises ValueError unless all values in a dataset.json have the right types."""
    check_keys(about, DATASET_KEYS)
    check_keys(about["request"], REQUEST_KEYS, of=" in its request")
    for name, kind in (("classes", str), ("counts", int), ("shards", dict), ("errors", dict)):
        for value in about[name]:
            check_type(f"an entry of its {name!r}", value, kind)
    for value in about["converted"].values():
        check_type("a value of its 'converted'", value, int)
    if len(about["counts"]) != len(about["classes"]):
        raise ValueError(f"it has {len(about['classes'])} classes and {len(about['counts'])} counts")
    for error in about["errors"]:
        check_keys(error, {"name": str, "reason": str}, of=" in one of its errors")
    for shard in about["shards"]:
        check_keys(shard, SHARD_KEYS, of=" in one of its shards")
        if Path(shard["file"]).name != shard["file"]:
            raise ValueError(f"shard {shard['file']!r} is not the name of a file in the folder")
    if not (about["shards"] and about["request"]["encoding"] in ENCODINGS):
        raise ValueError("it has no shards or an unknown encoding")


def read_own(path: Place, keys: dict[str, Any]) -> dict[str, Any]:
    """Returns the object in a JSON file of a prepared set, its hash checked; format 1 has no hash."""
    return read_json(path, keys=keys, hashed=IF_PRESENT, remedy=AGAIN)


def prepared(
    *, path: str | Path, crop: str | None = None, num_classes: int, image_shape: Sequence[int]
) -> tuple[Stored, Int[np.ndarray, " n"]]:
    """Returns a data set of `cfgjax prepare`. crop: the crop that it must have been prepared with, None for any."""
    array_record()  # raises if the extra is missing
    about, folder = read_about(path), Path(path)
    request, count = about["request"], about["num_examples"]
    shape = shape_of(about)
    hint = "prepare it like this in another folder, or change the config"
    if shape != tuple(image_shape):
        raise UsageError(f"{path} has images of shape {shape}; data.image_shape is {tuple(image_shape)}: {hint}")
    if crop not in (None, request["crop"]):
        raise UsageError(f"{path} was prepared with --crop={request['crop']}; data.crop is {crop!r}: {hint}")
    check_num_classes(path, len(about["classes"]), num_classes)
    check_files(folder, about)
    label = read_prepared_labels(folder, about)
    images = Stored(reader(folder, about), (count, *shape), about["hash"], classes=tuple(about["classes"]))
    return images, label


def shape_of(about: About) -> tuple[int, int, int]:
    """Returns the shape of the images of a prepared set."""
    return (about["request"]["size"], about["request"]["size"], about["request"]["channels"])


def reader(folder: Path, about: About) -> RecordReader:
    """Returns the `RecordReader` of a prepared set."""
    paths, counts = zip(*((folder / shard["file"], shard["num_examples"]) for shard in about["shards"]), strict=True)
    return RecordReader(paths, counts, about["request"]["encoding"], shape_of(about))


def check_files(folder: Path, about: About) -> None:
    """Raises UsageError unless all files of a prepared set exist with their sizes and numbers of records."""
    paths = [folder / shard["file"] for shard in about["shards"]]
    if missing := [file.name for file in paths if not file.is_file()]:
        raise UsageError(f"{folder} lacks {missing[0]} ({len(missing)} of {len(paths)} files): prepare it again")
    for path, shard in zip(paths, about["shards"], strict=True):
        if (size := path.stat().st_size) != shard["bytes"]:
            raise UsageError(f"{path} is damaged: it has {size:,} bytes, not {shard['bytes']:,}; {AGAIN}")
        if (count := count_records(path)) != shard["num_examples"]:
            raise UsageError(f"{path} is damaged: it has {count:,} images, not {shard['num_examples']:,}; {AGAIN}")


def read_prepared_labels(folder: Path, about: About) -> Int[np.ndarray, " n"]:
    """Returns label.npy of a prepared set. Raises UsageError unless it has a label for each image."""
    label, count = read_npy(folder / LABELS), about["num_examples"]
    total = sum(shard["num_examples"] for shard in about["shards"])
    if label.ndim != 1 or not len(label) == total == count:
        raise UsageError(
            f"{folder} has labels of shape {label.shape} and {total} images; need {count} of each; {AGAIN}"
        )
    if label.dtype != np.int32 or (label < 0).any() or (label >= len(about["classes"])).any():
        raise UsageError(f"{folder / LABELS} is damaged: it has labels beyond the classes; {AGAIN}")
    return label


def verify(path: str | Path, advance: Callable[[int], object] = lambda images: None) -> About:
    """Compares all of a prepared set with its hashes and returns its dataset.json.

    advance(n) is called as images are read. Raises UsageError or, naming all damaged files, OSError.
    """
    array_record()
    about, folder = read_about(path), Path(path)
    check_files(folder, about)
    label, records, wrong = read_prepared_labels(folder, about), reader(folder, about), []
    total, start = content_digest(about["request"]), 0
    for number, shard in enumerate(about["shards"]):
        labels = label[start : start + shard["num_examples"]]
        start += len(labels)
        digest = digest_of(labels, records, number)
        if digest is None or shard.get("file_sha256") not in (None, sha256(folder / shard["file"])):
            wrong.append(shard["file"])
        elif shard.get("digest") not in (None, digest.hexdigest()):
            wrong.append(LABELS)
        else:
            total.update(digest.digest())
        advance(len(labels))
    if not wrong and total.hexdigest() != about["hash"]:
        wrong = ["a file (format 1 does not tell which)"]
    if wrong:
        raise damaged(path, f"{', '.join(dict.fromkeys(wrong))} does not match its hash")
    return about


def digest_of(labels: Int[np.ndarray, " n"], records: RecordReader, number: int) -> Hash | None:
    """Returns the digest of the examples of file `number`, or None if it cannot be read."""
    digest = hashlib.sha256()
    try:
        for label, record in zip(labels, records.records(number), strict=True):
            digest.update(hashed_example(label, record))
    except (OSError, ValueError):  # ValueError: not as many
        return None
    return digest


def content_digest(request: dict[str, Any]) -> Hash:
    """Returns the digest that, updated with those of all shards, gives the `hash` of a set."""
    return hashlib.sha256(json.dumps([1, request["encoding"], request["size"], request["channels"]]).encode())


def check_num_classes(path: str | Path, found: int, num_classes: int) -> None:
    """Raises UsageError unless the data set at path has as many classes as the config says."""
    if found != num_classes:
        raise UsageError(f"{path} has {found} classes; data.num_classes, which the model is made for, is {num_classes}")
