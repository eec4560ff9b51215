"""TensorFlow Datasets that were prepared as array_record: read without TensorFlow."""

import contextlib
import dataclasses
import functools
import hashlib
from pathlib import Path

import numpy as np

from cfgjax.base.caches import user_cache
from cfgjax.base.errors import UsageError, nearest, one_line
from cfgjax.base.files import read_npy, writing
from cfgjax.base.progress import Progress
from cfgjax.data.sources.folder import decoded, synsets_of

LABELLED = "among the ImageNets imagenet2012 and imagenet_resized have labels, downsampled_imagenet has none"


def library():
    """tensorflow_datasets, which imports no TensorFlow by itself."""
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise UsageError("TFDS sets are read with tensorflow_datasets: pip install 'cfgjax[tfds]'") from None
    return tfds


@dataclasses.dataclass(frozen=True)
class Tfds:
    """A split of a TFDS set in a folder: tfds[i] is (encoded image i, its label), classes in the order of `classes`.

    order: int [K], the label here of each label there: where all classes are synsets, they are sorted.
    """

    root: str
    title: str
    split: str
    image_key: str
    label_key: str
    classes: tuple
    order: tuple
    start: int
    stop: int

    def __len__(self):
        return self.stop - self.start

    def __getitem__(self, i):
        example = self._source[self.start + i]
        return example[self.image_key], self.order[int(example[self.label_key])]

    @functools.cached_property
    def _source(self):
        tfds = library()
        decoders = {self.image_key: tfds.decode.SkipDecoding()}
        return tfds.builder_from_directory(self.root).as_data_source(self.split, decoders=decoders)

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "_source"}

    def name(self, i):
        """Example i in words."""
        return f"example {self.start + i} of split {self.split}"

    def part(self, start, stop):
        """Those from start to stop."""
        return dataclasses.replace(self, start=self.start + start, stop=self.start + stop)

    def digest(self):
        """SHA-256 of what the set is called, its version, split, number and classes."""
        return hashlib.sha256(repr((self.title, self.split, len(self), self.classes)).encode()).hexdigest()

    def identity(self):
        """SHA-256 of all that the labels depend on: `digest`, order, and the place, sizes and times of the files."""
        files = [(str(path), path.stat()) for path in sorted(Path(self.root).resolve().iterdir())]
        told = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in files]
        return hashlib.sha256(repr((self.digest(), self.order, self.start, told)).encode()).hexdigest()


def labels_of(listing):
    """int32 [N] of a `Tfds`, out of the user's cache folder, or by a pass over the whole set and then kept there.

    A label lies in one record with its image, so that none can be had without reading both.
    """
    try:
        kept = user_cache() / "labels" / f"{listing.identity()}.npy"
        kept.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return read_labels(listing)
    with contextlib.suppress(UsageError):
        label = read_npy(kept)
        if label.shape == (len(listing),) and label.dtype == np.int32:
            return label
    label = read_labels(listing)
    with contextlib.suppress(OSError), writing(kept) as new:  # a full disk: they are read again the next time
        np.save(new, label)
    return label


def read_labels(listing):
    """int32 [N] of a `Tfds`, by a pass over the set, which is told and counted."""
    with Progress("reading labels", "example", len(listing)) as bar:
        bar.say(f"{listing.title}: the labels of {len(listing):,} examples are read, and kept for the next time")
        label = np.empty(len(listing), np.int32)
        for i in range(len(listing)):
            label[i] = listing[i][1]
            bar.advance(1)
        return label


def list_tfds(path, split="train"):
    """The `Tfds` of the split of a set in folder path (…/name/version).

    Raises UsageError where there is none, where it is no array_record, or where it has no images with labels.
    """
    tfds = library()
    try:
        builder = tfds.builder_from_directory(path)
    except Exception as e:  # what it raises is not documented
        raise UsageError(f"{path} is no TFDS set: {one_line(e, 200)}") from e
    info = builder.info
    if info.file_format is None or info.file_format.value != "array_record":
        form = getattr(info.file_format, "value", None)
        raise UsageError(f"{path} is written as {form}; prepare it anew as array_record: cfgjax prepare tfds NAME")
    image_key, label_key = keys(info)
    if split not in info.splits:
        raise UsageError(f"the TFDS set {info.full_name} has no split {split!r}; it has {', '.join(info.splits)}")
    names = tuple(info.features[label_key].names)
    classes = tuple(sorted(names)) if synsets_of(names) else names
    order = tuple(classes.index(name) for name in names)
    count = info.splits[split].num_examples
    return Tfds(str(path), info.full_name, split, image_key, label_key, classes, order, 0, count)


def keys(info):
    """(key of the images, key of the labels) of a TFDS set. Raises UsageError where it has none."""
    features = library().features
    image, label = key_of(info.features, features.Image), key_of(info.features, features.ClassLabel)
    if image is None or label is None:
        lacks, has = "images" if image is None else "labels", ", ".join(getattr(info.features, "keys", list)())
        raise UsageError(f"the TFDS set {info.full_name} has no {lacks}, only {has or info.features}; {LABELLED}")
    return image, label


def key_of(features, kind):
    """The first key of a dict of TFDS features that is of a kind, or None."""
    items = features.items() if hasattr(features, "items") else ()
    return next((key for key, feature in items if isinstance(feature, kind)), None)


def find_tfds(name, data_dir=None):
    """The folder of a TFDS set that is there: name is its folder, or what TFDS calls it, in data_dir. None if not."""
    if (Path(name) / "dataset_info.json").exists():
        return str(name)
    builder = builder_of(name, data_dir)
    return str(builder.data_path) if (Path(builder.data_path) / "dataset_info.json").exists() else None


def builder_of(name, data_dir):
    """TFDS's builder of a set called name, writing array_record."""
    tfds = library()
    try:
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except ImportError as e:
        raise UsageError(f"{needs_tensorflow(name)} ({one_line(e)})") from e
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        raise UsageError(f"TFDS has no set {name!r}{nearest(name.partition('/')[0], known)}") from None
    except Exception as e:  # what else it raises is not documented
        raise UsageError(f"TFDS cannot make {name!r}: {one_line(e, 200)}") from e


def download(name, data_dir=None, manual_dir=None):
    """The folder of the TFDS set called name, which TensorFlow writes as array_record where it is not there.

    manual_dir: with the files that TFDS does not download; any others that are there are not downloaded either.
    """
    if (found := find_tfds(name, data_dir)) is not None:
        return found
    builder = builder_of(name, data_dir)
    keys(builder.info)  # or an error, before hours of work
    try:
        import tensorflow  # noqa: F401
    except ImportError:
        raise UsageError(needs_tensorflow(name)) from None
    config = library().download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    try:
        builder.download_and_prepare(download_config=config)
    except Exception as e:  # of the network, of checksums, of files to be had by hand, …
        raise OSError(f"TFDS cannot prepare {name}: {one_line(e, 500)}") from e
    return str(builder.data_path)


def needs_tensorflow(name):
    """What to do where TFDS cannot do without TensorFlow."""
    return f"TFDS needs TensorFlow to prepare {name}, once and in any environment: pip install 'cfgjax[prepare]'"


def tfds(*, path, data_dir=None, tfds_split="train", crop="adm", num_classes, image_shape):
    """A TFDS set, its folder or its name in data_dir, decoded and cropped each time; `labels_of` reads the labels."""
    found = find_tfds(path, data_dir)
    if found is None:
        raise UsageError(f"the TFDS set {path} is not prepared in {data_dir or '~/tensorflow_datasets'}: "
                         f"cfgjax prepare tfds {path}")  # fmt: skip
    listing = list_tfds(found, tfds_split)
    return decoded(listing, labels_of(listing), crop, num_classes, image_shape)
