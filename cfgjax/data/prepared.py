"""Data sets that `cfgjax prepare` made: a folder of array_record files, label.npy and dataset.json.

dataset.json has `format`, `num_examples`, `classes` (names in the order of the labels), `synsets` (the same where they
are WordNet's, else null), `counts` (examples of each class), `request` (what was asked for: source, size, crop,
channels, encoding), `shards` (file and number of examples of each), `converted` (how many images had to be, by what),
`errors` (name and reason of each image left out) and `hash` (SHA-256 of labels and records). It is written last.
"""

import json
from pathlib import Path

import numpy as np

from cfgjax.data.dataset import Stored
from cfgjax.data.records import RecordReader, array_record
from cfgjax.errors import UsageError

FORMAT = 1
ABOUT, LABELS, REQUEST = "dataset.json", "label.npy", "request.json"


def read_about(path):
    """dataset.json of the prepared set in folder path. Raises UsageError where there is none of this format."""
    folder = Path(path)
    if (folder / REQUEST).exists() and not (folder / ABOUT).exists():
        raise UsageError(f"{path} is not prepared to its end; the same cfgjax prepare command goes on with it")
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except OSError as e:
        hint = "cfgjax prepare folder|tfds|npz IN OUT --size=… makes one"
        raise UsageError(f"{path} is no prepared data set: {e.strerror} ({ABOUT}); {hint}") from e
    except ValueError as e:
        raise UsageError(f"{folder / ABOUT} cannot be read: {e}") from e
    if about.get("format") != FORMAT:
        raise UsageError(f"{path} has format {about.get('format')}; this version reads {FORMAT}: prepare it anew")
    return about


def prepared(*, path, crop=None, num_classes, image_shape):
    """A data set of `cfgjax prepare`. crop: the one it must have been prepared with, None for any."""
    array_record()  # or an error, before anything else
    about, folder = read_about(path), Path(path)
    request, count = about["request"], about["num_examples"]
    shape = (request["size"], request["size"], request["channels"])
    again = "prepare it so, into another folder, or change the config"
    if shape != tuple(image_shape):
        raise UsageError(f"{path} has images of shape {shape}; data.image_shape is {tuple(image_shape)}: {again}")
    if crop not in (None, request["crop"]):
        raise UsageError(f"{path} was prepared with --crop={request['crop']}; data.crop is {crop!r}: {again}")
    check_num_classes(path, len(about["classes"]), num_classes)
    paths = [folder / shard["file"] for shard in about["shards"]]
    if missing := [file.name for file in paths if not file.is_file()]:
        raise UsageError(f"{path} lacks {missing[0]} ({len(missing)} of {len(paths)} files): prepare it anew")
    counts = [shard["num_examples"] for shard in about["shards"]]
    reader = RecordReader(paths, counts, request["encoding"], shape)
    try:
        label = np.load(folder / LABELS, allow_pickle=False)
    except (OSError, ValueError) as e:
        raise UsageError(f"cannot read {folder / LABELS}: {' '.join(str(e).split())}") from e
    if not len(label) == sum(counts) == count:
        raise UsageError(f"{path} has {len(label)} labels and {sum(counts)} images, and should have {count} of each")
    return Stored(reader, (count, *shape), about["hash"]), label


def check_num_classes(path, found, num_classes):
    """Raises UsageError unless the data set at path has as many classes as the config says."""
    if found != num_classes:
        raise UsageError(f"{path} has {found} classes; data.num_classes, which the model is made for, is {num_classes}")
