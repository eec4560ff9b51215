"""TensorFlow Datasets that were prepared as array_record: read without TensorFlow."""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from cfgjax.base.caches import user_cache
from cfgjax.base.errors import UsageError, nearest, one_line
from cfgjax.base.files import read_npy, writing
from cfgjax.base.progress import Progress
from cfgjax.data.dataset import Stored
from cfgjax.data.sources.folder import decoded, synsets_of

LABELLED = "among the ImageNets imagenet2012 and imagenet_resized have labels, downsampled_imagenet has none"


def library() -> Any:
    """Returns tensorflow_datasets, which does not import TensorFlow."""
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UsageError("TFDS sets are read with tensorflow_datasets: pip install 'cfgjax[tfds]'") from None
    return tfds


@dataclasses.dataclass(frozen=True)
class Tfds:
    """A split of a TFDS set in a folder. tfds[i] is (encoded image i, its label).

    order: the label here of each of the set's labels. It sorts the classes if all of them are synsets.
    """

    root: str
    title: str
    split: str
    image_key: str
    label_key: str
    classes: tuple[str, ...]
    order: tuple[int, ...]
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, i: int) -> tuple[bytes, int]:
        example = self._source[self.start + i]
        return example[self.image_key], self.order[int(example[self.label_key])]

    @functools.cached_property
    def _source(self) -> Any:
        tfds = library()
        decoders = {self.image_key: tfds.decode.SkipDecoding()}
        return tfds.builder_from_directory(self.root).as_data_source(self.split, decoders=decoders)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_source"}

    def name(self, i: int) -> str:
        """Returns the name of example i in messages."""
        return f"example {self.start + i} of split {self.split}"

    def part(self, start: int, stop: int) -> "Tfds":
        """Returns the listing of the examples start … stop − 1."""
        return dataclasses.replace(self, start=self.start + start, stop=self.start + stop)

    def digest(self) -> str:
        """Returns the SHA-256 of the set's name, version, split, size and classes."""
        return hashlib.sha256(repr((self.title, self.split, len(self), self.classes)).encode()).hexdigest()

    def identity(self) -> str:
        """Returns the SHA-256 of what the labels depend on: `digest`, order, and paths, sizes and times of files."""
        stats = [(str(path), path.stat()) for path in sorted(Path(self.root).resolve().iterdir())]
        files = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
        return hashlib.sha256(repr((self.digest(), self.order, self.start, files)).encode()).hexdigest()


def labels_of(listing: Tfds) -> Int32[np.ndarray, " n"]:
    """Returns the labels of a `Tfds` from the user's cache folder, or reads and caches them.

    A label is in one record with its image, so that reading the labels needs a pass over the whole set.
    """
    try:
        kept = user_cache() / "labels" / f"{listing.identity()}.npy"
        kept.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return read_tfds_labels(listing)
    with contextlib.suppress(UsageError):
        label = read_npy(kept)
        if label.shape == (len(listing),) and label.dtype == np.int32:
            return label
    label = read_tfds_labels(listing)
    with contextlib.suppress(OSError), writing(kept) as new:  # a full disk: they are read again the next time
        np.save(new, label)
    return label


def read_tfds_labels(listing: Tfds) -> Int32[np.ndarray, " n"]:
    """Returns the labels of a `Tfds` by a pass over the set, with a progress bar."""
    with Progress("reading labels", "example", len(listing)) as bar:
        bar.say(f"{listing.title}: reads the labels of {len(listing):,} examples once, and caches them")
        label = np.empty(len(listing), np.int32)
        for i in range(len(listing)):
            label[i] = listing[i][1]
            bar.advance(1)
        return label


def list_tfds(path: str | Path, split: str = "train") -> Tfds:
    """Returns the `Tfds` of a split of the set in the folder path (…/name/version).

    Raises UsageError if there is none, if it is not array_record, or if it has no images with labels.
    """
    tfds = library()
    try:
        builder = tfds.builder_from_directory(path)
    except Exception as e:  # what it raises is not documented
        raise UsageError(f"{path} is not a TFDS data set: {one_line(e, 200)}") from e
    info = builder.info
    if info.file_format is None or info.file_format.value != "array_record":
        form = getattr(info.file_format, "value", None)
        raise UsageError(f"{path} is written as {form}; prepare it again as array_record: cfgjax prepare tfds NAME")
    image_key, label_key = keys(info)
    if split not in info.splits:
        raise UsageError(f"the TFDS set {info.full_name} has no split {split!r}; it has {', '.join(info.splits)}")
    names = tuple(info.features[label_key].names)
    classes = tuple(sorted(names)) if synsets_of(names) else names
    order = tuple(classes.index(name) for name in names)
    count = info.splits[split].num_examples
    return Tfds(str(path), info.full_name, split, image_key, label_key, classes, order, 0, count)


def keys(info: Any) -> tuple[str, str]:
    """Returns (key of the images, key of the labels) of a TFDS set. Raises UsageError if one is missing."""
    features = library().features
    image, label = feature_key(info.features, features.Image), feature_key(info.features, features.ClassLabel)
    if image is None or label is None:
        lacks, has = "images" if image is None else "labels", ", ".join(getattr(info.features, "keys", list)())
        raise UsageError(f"the TFDS set {info.full_name} has no {lacks}, only {has or info.features}; {LABELLED}")
    return image, label


def feature_key(features: Any, kind: type) -> str | None:
    """Returns the first key of a dict of TFDS features whose feature is of a kind, or None."""
    items = features.items() if hasattr(features, "items") else ()
    return next((key for key, feature in items if isinstance(feature, kind)), None)


def find_tfds(name: str, data_dir: str | None = None) -> str | None:
    """Returns the folder of a TFDS set, None if it does not exist. name: the folder, or the set's name in data_dir."""
    if (Path(name) / "dataset_info.json").exists():
        return str(name)
    builder = builder_of(name, data_dir)
    return str(builder.data_path) if (Path(builder.data_path) / "dataset_info.json").exists() else None


def builder_of(name: str, data_dir: str | None) -> Any:
    """Returns TFDS's builder of a set, which writes array_record."""
    tfds = library()
    try:
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except ImportError as e:
        raise UsageError(f"{needs_tensorflow(name)} ({one_line(e)})") from e
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        raise UsageError(f"TFDS has no data set {name!r}{nearest(name.partition('/')[0], known)}") from None
    except Exception as e:  # what else it raises is not documented
        raise UsageError(f"TFDS cannot make {name!r}: {one_line(e, 200)}") from e


def download(name: str, data_dir: str | None = None, manual_dir: str | None = None) -> str:
    """Returns the folder of a TFDS set. If it does not exist, TensorFlow writes it as array_record.

    manual_dir: folder of files that TFDS cannot download. Other files that it has are not downloaded either.
    """
    if (found := find_tfds(name, data_dir)) is not None:
        return found
    builder = builder_of(name, data_dir)
    keys(builder.info)  # raises an error before hours of work
    try:
        import tensorflow  # noqa: F401
    except ImportError:
        raise UsageError(needs_tensorflow(name)) from None
    config = library().download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    try:
        builder.download_and_prepare(download_config=config)
    except Exception as e:  # network, checksums, files to be downloaded manually, …
        raise OSError(f"TFDS cannot prepare {name}: {one_line(e, 500)}") from e
    return str(builder.data_path)


def needs_tensorflow(name: str) -> str:
    """Returns advice for a set that TFDS can only prepare with TensorFlow."""
    how = "once; this can be done in another environment"
    return f"TFDS needs TensorFlow to prepare {name}, {how}: pip install 'cfgjax[prepare]'"


def tfds(
    *,
    path: str,
    data_dir: str | None = None,
    tfds_split: str = "train",
    crop: str = "adm",
    num_classes: int,
    image_shape: Sequence[int],
) -> tuple[Stored, Int32[np.ndarray, " n"]]:
    """Returns the images of a TFDS set, decoded and cropped on each access, and its labels. path: see `find_tfds`."""
    found = find_tfds(path, data_dir)
    if found is None:
        raise UsageError(f"the TFDS set {path} is not prepared in {data_dir or '~/tensorflow_datasets'}: "
                         f"cfgjax prepare tfds {path}")  # fmt: skip
    listing = list_tfds(found, tfds_split)
    return decoded(listing, labels_of(listing), crop, num_classes, image_shape)
