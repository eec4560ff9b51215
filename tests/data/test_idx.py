"""IDX files of MNIST's format."""

import gzip

import numpy as np
import pytest

from cfgjax.base.errors import UsageError
from cfgjax.cli.prepare import prepare
from cfgjax.data.sources.idx import list_idx
from cfgjax.data.sources.prepared import read_about


def write_idx(path, array, *, kind=8):
    """Writes uint8 array as an IDX file, compressed if the name ends in .gz."""
    header = bytes([0, 0, kind, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_folder(folder, count=30, *, suffix=".gz", prefix="train"):
    """Writes count images 6×5 of 3 classes. Returns (images, labels)."""
    image = np.random.default_rng(0).integers(0, 256, (count, 6, 5), dtype=np.uint8)
    label = (np.arange(count) % 3).astype(np.uint8)
    write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", image)
    write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", label)
    return image, label


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("test", "t10k")])
def test_the_listing_has_the_images_and_labels_of_the_files(tmp_path, suffix, split, prefix):
    image, label = write_folder(tmp_path, suffix=suffix, prefix=prefix)
    listing = list_idx(tmp_path, split)
    np.testing.assert_array_equal(listing.image[..., 0], image)
    np.testing.assert_array_equal(listing.label, label)
    assert listing.classes == ("0", "1", "2")


def test_a_prepared_idx_data_set_has_the_images_of_the_same_npz(tmp_path):
    image, label = write_folder(tmp_path)
    np.savez(tmp_path / "a.npz", image=image[..., None], label=label, classes=np.array(["x", "y", "z"]))
    flags = ["--size=8", "--crop=pad", "--channels=1", "--workers=1"]
    assert prepare(["prepare", "idx", str(tmp_path), f"{tmp_path}-a", "--class_names=x,y,z", *flags]) == 0
    assert prepare(["prepare", "npz", str(tmp_path / "a.npz"), f"{tmp_path}-b", *flags]) == 0
    ours, theirs = read_about(f"{tmp_path}-a"), read_about(f"{tmp_path}-b")
    assert ours["classes"] == ["x", "y", "z"]
    assert ours["hash"] == theirs["hash"]


def damage(folder, name, change):
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda content: content[:-1], "values for the shape"),
        (lambda content: content + b"x", "values for the shape"),
        (lambda content: b"\x00\x00\x0d\x03" + content[4:], "is not an IDX file of bytes"),
        (lambda content: b"", "is not an IDX file of bytes"),
        (lambda content: content[:4] + b"\xff" * 12 + content[16:], "values for the shape"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, change, named):
    write_folder(tmp_path, suffix="")
    damage(tmp_path, "train-images-idx3-ubyte", change)
    with pytest.raises(UsageError, match=named) as error:
        list_idx(tmp_path)
    assert "\n" not in str(error.value)


def test_damaged_compression_is_one_line(tmp_path):
    write_folder(tmp_path)
    for change in (lambda content: content[:-9], lambda content: b"no gzip", lambda content: content[:20] + b"x" * 40):
        write_folder(tmp_path)
        damage(tmp_path, "train-images-idx3-ubyte.gz", change)
        with pytest.raises(UsageError, match="idx3-ubyte"):
            list_idx(tmp_path)


def test_absent_files_and_labels_that_do_not_fit_are_one_line(tmp_path):
    with pytest.raises(UsageError, match="has no train-images-idx3-ubyte"):
        list_idx(tmp_path)
    write_folder(tmp_path)
    with pytest.raises(UsageError, match="has no t10k-images"):
        list_idx(tmp_path, "test")
    with pytest.raises(UsageError, match="--split=validation"):
        list_idx(tmp_path, "validation")
    with pytest.raises(UsageError, match="2 class names"):
        list_idx(tmp_path, class_names=("a", "b"))
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.zeros(7, np.uint8))
    with pytest.raises(UsageError, match="30 images and 7 labels"):
        list_idx(tmp_path)


def test_class_names_are_only_for_idx_files(tmp_path):
    with pytest.raises(UsageError, match="--class_names is only for idx"):
        prepare(["prepare", "npz", "a.npz", str(tmp_path / "out"), "--size=8", "--class_names=a"])
