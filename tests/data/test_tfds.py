"""TFDS sets written as array_record, without TensorFlow."""

import io
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny import open_source

from cfgjax.base.errors import UsageError
from cfgjax.cli.main import run_command
from cfgjax.data.sources.tfds import Tfds, list_tfds

tfds = pytest.importorskip("tensorflow_datasets")
pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore")]  # warnings of TFDS and what it imports
SYNSETS = ["n00000003", "n00000001", "n00000002"]


class Toy(tfds.core.GeneratorBasedBuilder):
    """Thirty 8×8 images, image i of the grey i, of three synsets in an order that is not theirs."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=SYNSETS),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(30):
            file = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(file, "PNG")
            file.seek(0)
            yield i, self.example(file, i)

    def example(self, file, i):
        return {"image": file, "label": i % 3}


class Bare(Toy):
    """The same without labels."""

    def _info(self):
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(None, None, 3))})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def example(self, file, i):
        return {"image": file}


def write(builder, folder):
    """The folder of a set as TFDS writes it."""
    made = builder(data_dir=str(folder), file_format="array_record")
    made.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return str(made.data_path)


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """The user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write(Toy, tmp_path_factory.mktemp("tfds"))


def check(dataset):
    """Label and image belong together, and the classes are the sorted synsets."""
    grey = dataset.images(np.arange(30))[:, 0, 0, 0]
    assert np.array_equal(np.sort(grey), np.arange(30))
    assert [SYNSETS[i % 3] for i in grey] == [sorted(SYNSETS)[k] for k in dataset.label]


def test_synsets_are_sorted_whatever_the_order_of_the_set(toy):
    check(open_source(source="tfds", path=toy, num_classes=3, image_shape=(8, 8, 3)))


@pytest.fixture
def reads(monkeypatch):
    """The examples that were read, one by one."""
    read, seen = Tfds.__getitem__, []
    monkeypatch.setattr(Tfds, "__getitem__", lambda self, i: (seen.append(i), read(self, i))[1])
    return seen


def opened(path):
    return open_source(source="tfds", path=path, num_classes=3, image_shape=(8, 8, 3))


def test_labels_are_read_once_and_cached_until_the_files_change(toy, tmp_path, reads, capsys):
    shutil.copytree(toy, tmp_path / "toy")
    first = opened(f"{tmp_path}/toy")
    assert len(reads) == 30 and "toy/1.0.0: reads the labels of 30 examples" in capsys.readouterr().out
    again = opened(f"{tmp_path}/toy")
    assert len(reads) == 30 and capsys.readouterr().out == ""
    assert np.array_equal(again.label, first.label)
    check(again)
    del reads[:]
    os.utime(next((tmp_path / "toy").glob("*-train.*")), (1, 1))
    assert np.array_equal(opened(f"{tmp_path}/toy").label, first.label) and len(reads) == 30


@pytest.mark.parametrize("trouble", ["damaged", "cut", "no folder"])
def test_labels_that_cannot_be_cached_are_read_each_time(trouble, toy, caches, reads):
    opened(toy)
    kept = next((caches / "cfgjax" / "labels").iterdir())
    if trouble == "no folder":
        shutil.rmtree(caches)
        caches.write_text("a file")
    else:
        kept.write_bytes(kept.read_bytes()[:-8] if trouble == "cut" else b"")
    del reads[:]
    opened(toy)
    assert len(reads) == 30


def test_a_prepared_tfds_set_equals_the_set_read_directly(toy, tmp_path):
    assert run_command(["prepare", "tfds", toy, f"{tmp_path}/set", "--size=8", "--workers=2"]) == 0
    prepared = open_source(source="prepared", path=f"{tmp_path}/set", num_classes=3, image_shape=(8, 8, 3))
    check(prepared)
    direct = open_source(source="tfds", path=toy, num_classes=3, image_shape=(8, 8, 3))
    assert np.array_equal(prepared.images(np.arange(30)), direct.images(np.arange(30)))
    about = json.loads((tmp_path / "set" / "dataset.json").read_text())
    assert about["synsets"] == sorted(SYNSETS) and about["counts"] == [10, 10, 10]


def test_sets_without_labels_are_reported_with_the_alternatives(tmp_path):
    with pytest.raises(UsageError, match="has no labels, only image; .*downsampled_imagenet has none"):
        list_tfds(write(Bare, tmp_path))


def test_folders_without_a_tfds_set_are_reported(toy, tmp_path):
    with pytest.raises(UsageError, match="is not a TFDS data set"):
        list_tfds(str(tmp_path))
    with pytest.raises(UsageError, match="has no split 'tset'; it has train"):
        list_tfds(toy, "tset")
    with pytest.raises(UsageError, match="TFDS has no data set 'cifar11', did you mean 'cifar10"):
        run_command(["prepare", "tfds", "cifar11", f"{tmp_path}/out", "--size=8", f"--data_dir={tmp_path}"])
    with pytest.raises(UsageError, match="has 3 classes; data.num_classes, .* is 10"):
        open_source(source="tfds", path=toy, num_classes=10, image_shape=(8, 8, 3))
    with pytest.raises(UsageError, match="the TFDS set mnist is not prepared in .*: cfgjax prepare tfds mnist"):
        open_source(source="tfds", path="mnist", data_dir=str(tmp_path), num_classes=10, image_shape=(8, 8, 3))
