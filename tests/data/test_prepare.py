"""`cfgjax prepare`, and the sets that it leaves."""

import json
import signal

import command
import numpy as np
import pytest
from disks import small_disk
from images import write_folder, write_npz
from PIL import Image
from tiny import open_source

from cfgjax.base.errors import UsageError
from cfgjax.cli.main import run_command
from cfgjax.data.images.decoding import Converter
from cfgjax.data.prepare import shard_size

pytest.importorskip("array_record")


def prepare(*words):
    """The exit code of cfgjax prepare, with one worker unless words say otherwise."""
    return run_command(["prepare", *map(str, words[:3]), "--workers=1", *words[3:]])


def opened(path, **changes):
    config = {"source": "prepared", "path": str(path), "num_classes": 4, "image_shape": (8, 8, 3)}
    return open_source(**config | changes)


def about(path):
    return json.loads((path / "dataset.json").read_text())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("encoding", ["webp", "png", "raw"])
def test_images_are_read_exactly(encoding, channels, tmp_path):
    image, label = write_npz(tmp_path / "a.npz", count=300, shape=(8, 8, channels))
    prepare("npz", tmp_path / "a.npz", tmp_path / "set", "--size=8", f"--channels={channels}", f"--encoding={encoding}")
    found = opened(tmp_path / "set", image_shape=(8, 8, channels))
    index = np.random.default_rng(0).integers(0, 300, 50)  # over both files
    assert np.array_equal(found.images(index), image[index])
    assert np.array_equal(found.label, label)
    assert len(about(tmp_path / "set")["shards"]) == 2


@pytest.mark.parametrize("split", ["train", "holdout"])
def test_the_splits_of_a_prepared_set_equal_those_of_an_array(split, tmp_path):
    write_npz(tmp_path / "a.npz")
    prepare("npz", tmp_path / "a.npz", tmp_path / "set", "--size=8")
    data = {"source": "npz", "path": str(tmp_path / "a.npz"), "num_classes": 4, "image_shape": (8, 8, 3)}
    expected, found = open_source(**data, split=split), opened(tmp_path / "set", split=split)
    assert np.array_equal(found.label, expected.label)
    assert np.array_equal(found.images(np.arange(len(found))), expected.image)


def test_a_prepared_folder_equals_the_folder_read_directly(tmp_path, capsys):
    root = write_folder(tmp_path / "images")
    prepare("folder", root, tmp_path / "set", "--size=8")
    assert "12 images 8×8×3 of 3 classes" in capsys.readouterr().out
    direct = open_source(source="folder", path=str(root), crop="adm", num_classes=3, image_shape=(8, 8, 3))
    found = opened(tmp_path / "set", num_classes=3)
    assert np.array_equal(found.label, np.repeat([0, 1, 2], 4)) and np.array_equal(direct.label, found.label)
    assert np.array_equal(found.images(np.arange(12)), direct.images(np.arange(12)))
    first = Converter(8, "adm", 3)((root / "ant" / "part0" / "0.png").read_bytes())[0]
    assert np.array_equal(found.images(np.array([0]))[0], first)
    told = about(tmp_path / "set")
    assert told["classes"] == ["ant", "bee", "cat"] and told["counts"] == [4, 4, 4] and told["synsets"] is None


@pytest.mark.e2e
def test_the_hash_depends_on_the_images_and_not_on_the_workers(tmp_path):
    write_npz(tmp_path / "a.npz", count=600)
    sets = {workers: tmp_path / f"{workers}" for workers in (1, 3)}
    for workers, out in sets.items():
        prepare("npz", tmp_path / "a.npz", out, "--size=8", f"--workers={workers}")
    prepare("npz", tmp_path / "a.npz", tmp_path / "other", "--size=9")
    assert about(sets[1]) == about(sets[3])
    assert about(sets[1])["hash"] != about(tmp_path / "other")["hash"]


def test_the_number_of_files_is_neither_too_small_for_workers_nor_too_large_to_open():
    for count in (1, 1000, 60_000, 1_281_167, 14_000_000):
        assert count / shard_size(count) <= 500
    assert shard_size(1_281_167) == 4096
    assert 60_000 / shard_size(60_000) >= 30


@pytest.mark.e2e
def test_preparation_that_is_killed_resumes_to_the_same_set_and_leaves_no_worker(tmp_path):
    write_npz(tmp_path / "a.npz", count=1500, shape=(64, 64, 3))
    words = f"prepare npz {tmp_path}/a.npz {tmp_path}/{{}} --size=96 --workers=1"
    for count, number, expected in [(1, signal.SIGHUP, 75), (2, signal.SIGKILL, -9)]:
        process = command.start(words.format("killed"))
        command.wait_until(lambda count=count: len(list((tmp_path / "killed").glob("shard-*.json"))) >= count, 300)
        workers = command.children(process.pid)
        process.send_signal(number)
        code, _, err = command.finish(process)
        assert code == expected, err
        assert workers
        command.wait_until(lambda workers=workers: not any(map(command.lives, workers)), 60)
        assert not (tmp_path / "killed" / "dataset.json").exists()
    with pytest.raises(UsageError, match="is not complete; the same cfgjax prepare command resumes"):
        opened(tmp_path / "killed", image_shape=(96, 96, 3))
    code, out, err = command.run(words.format("killed"))
    assert code == 0, err
    assert "of 6 shards are complete" in out
    assert command.run(words.format("straight"))[0] == 0
    for name in ("dataset.json", "label.npy"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    names = lambda out: {path.name for path in (tmp_path / out).iterdir()}
    assert names("killed") == names("straight")


@pytest.mark.e2e
def test_a_full_disk_is_reported_and_a_later_call_resumes_from_the_existing_files(tmp_path):
    disk = tmp_path / "disk"
    with small_disk(disk, "4m") as grow:
        image, _ = write_npz(tmp_path / "a.npz", count=600, shape=(64, 64, 3))
        words = f"prepare npz {tmp_path}/a.npz {disk}/set --size=64 --encoding=raw --workers=1"
        code, _, err = command.run(words)
        assert code == 1, err
        assert len(err.strip().splitlines()) == 1 and str(disk) in err, err
        assert not (disk / "set" / "dataset.json").exists()
        grow("40m")
        code, out, err = command.run(words)
        assert code == 0, err
        assert "1 of 3 shards are complete" in out
        found = opened(disk / "set", image_shape=(64, 64, 3))
        assert np.array_equal(found.images(np.arange(600)), image)


def broken_folder(root, broken=2):
    """A folder of images of which some are truncated."""
    write_folder(root, size=(40, 40))
    for i in range(broken):
        path = root / "bee" / f"part{i % 2}" / f"{i}.png"
        path.write_bytes(path.read_bytes()[:300])
    return root


def test_truncated_images_are_listed_and_left_out(tmp_path, capsys):
    root = broken_folder(tmp_path / "images")
    assert prepare("folder", root, tmp_path / "set", "--size=8") == 0
    out = capsys.readouterr().out
    assert "left out (cannot be decoded): bee/part0/0.png" in out
    told = about(tmp_path / "set")
    assert [error["name"] for error in told["errors"]] == ["bee/part0/0.png", "bee/part1/1.png"]
    assert all(error["reason"] for error in told["errors"])
    assert told["counts"] == [4, 2, 4]
    assert np.bincount(opened(tmp_path / "set", num_classes=3).label).tolist() == [4, 2, 4]


def test_more_broken_images_than_allowed_stop_preparation_and_a_higher_limit_resumes_it(tmp_path):
    root = broken_folder(tmp_path / "images", broken=3)
    with pytest.raises(UsageError, match=r"3 images cannot be decoded, --max_errors is 2: bee/part0/0\.png \(.*saved"):
        prepare("folder", root, tmp_path / "set", "--size=8", "--max_errors=2")
    assert prepare("folder", root, tmp_path / "set", "--size=8", "--max_errors=3") == 0


def test_conversions_are_counted(tmp_path, capsys):
    root = write_folder(tmp_path / "images")
    Image.new("L", (20, 20)).save(root / "ant" / "grey.png")
    Image.new("CMYK", (20, 20)).save(root / "bee" / "print.jpg")
    (root / "bee" / "notes.txt").write_text("no image")
    prepare("folder", root, tmp_path / "set", "--size=8")
    assert about(tmp_path / "set")["converted"] == {"CMYK, made RGB": 1, "grey, made RGB": 1}
    out = capsys.readouterr().out
    assert "1 images grey, made RGB" in out
    assert "passed over: 1 files that are not images, such as bee/notes.txt" in out


def empty(root):
    root.mkdir()


def loose(root):
    root.mkdir()
    Image.new("RGB", (8, 8)).save(root / "a.png")


def one_class_empty(root):
    write_folder(root)
    (root / "dog").mkdir()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda root: None, "is not a folder"),
        (empty, r"needs images as class/…/image\.jpg, \.png, \.webp, …; it has none"),
        (loose, "it has 1 images outside of any class"),
        (one_class_empty, "class 'dog' of .* has no image"),
    ],
)
def test_folders_without_classes_of_images_are_reported(make, told, tmp_path):
    make(tmp_path / "images")
    with pytest.raises(UsageError, match=told):
        prepare("folder", tmp_path / "images", tmp_path / "set", "--size=8")
    assert not (tmp_path / "set").exists()


def test_a_different_request_into_the_same_folder_is_refused_with_the_differences(tmp_path):
    write_npz(tmp_path / "a.npz")
    prepare("npz", tmp_path / "a.npz", tmp_path / "set", "--size=8")
    before = about(tmp_path / "set")
    with pytest.raises(UsageError, match="crop is 'adm' there, 'area' here; size is 8 there, 4 here; prepare into ano"):
        prepare("npz", tmp_path / "a.npz", tmp_path / "set", "--size=4", "--crop=area")
    assert prepare("npz", tmp_path / "a.npz", tmp_path / "set", "--size=8") == 0
    assert about(tmp_path / "set") == before
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match=r"has other content \(letter\.txt\)"):
        prepare("npz", tmp_path / "a.npz", tmp_path / "home", "--size=8")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image_shape": (16, 16, 3)}, r"has images of shape \(8, 8, 3\); data\.image_shape is \(16, 16, 3\)"),
        ({"image_shape": (8, 8, 1)}, r"has images of shape \(8, 8, 3\); data\.image_shape is \(8, 8, 1\)"),
        ({"crop": "lanczos"}, "was prepared with --crop=adm; data.crop is 'lanczos'"),
        ({"num_classes": 10}, "has 4 classes; data.num_classes, which the model is made for, is 10"),
    ],
)
def test_a_prepared_set_that_differs_from_the_config_is_reported(changes, told, tmp_path):
    write_npz(tmp_path / "a.npz")
    prepare("npz", tmp_path / "a.npz", tmp_path / "set", "--size=8")
    with pytest.raises(UsageError, match=told):
        opened(tmp_path / "set", **changes)


def test_missing_and_damaged_files_of_a_prepared_set_are_reported(tmp_path):
    image, _ = write_npz(tmp_path / "a.npz")
    out = tmp_path / "set"
    prepare("npz", tmp_path / "a.npz", out, "--size=8", "--encoding=raw")
    found, file = opened(out), next(out.glob("*.array_record"))
    content = bytearray(file.read_bytes())
    content[content.find(image[5].tobytes()) + 7] ^= 1
    file.write_bytes(content)
    assert np.array_equal(found.images(np.array([4, 6])), image[[4, 6]])
    with pytest.raises(OSError, match=f"{file.name} is damaged: .*; prepare the data set again"):
        found.images(np.array([5]))
    file.unlink()
    with pytest.raises(UsageError, match=r"lacks shard-00000-of-00001\.array_record \(1 of 1 files\)"):
        opened(out)
    with pytest.raises(UsageError, match="is not a prepared data set: No such file"):
        opened(tmp_path / "none")
    (out / "dataset.json").write_text('{"format": 99}')
    with pytest.raises(UsageError, match="has format 99; this version reads 1"):
        opened(out)


def test_a_broken_image_of_a_folder_read_directly_is_named(tmp_path):
    root = broken_folder(tmp_path / "images")
    data = open_source(source="folder", path=str(root), num_classes=3, image_shape=(8, 8, 3))
    with pytest.raises(OSError, match=r"cannot decode bee/part0/0\.png: .*cfgjax prepare leaves out such images"):
        data.images(np.arange(12))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "the first word must be one of folder, tfds, npz"),
        (["foldr", "a", "b"], "unknown kind of data 'foldr', did you mean 'folder'"),
        (["folder", "a"], "cfgjax prepare folder IN OUT --size=…; given a"),
        (["npz", "a", "b", "c"], "cfgjax prepare npz IN OUT --size=…; given a b c"),
        (["npz", "none.npz", "out"], "--size must be given"),
        (["npz", "none.npz", "out", "--size=8"], "cannot read none.npz"),
        (["npz", "none.npz", "out", "--siz=8"], "Unknown command line flag 'siz'"),
    ],
)
def test_bad_command_lines_are_reported(words, told):
    with pytest.raises(UsageError, match=told):
        run_command(["prepare", *words])


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"image": np.zeros((4, 8, 8, 3), np.float32), "label": np.arange(4)}, "image has dtype float32"),
        (
            {"image": np.zeros((4, 8, 8, 3), np.uint8), "label": np.arange(3)},
            r"label has .* shape \(3,\); need 4",
        ),
        ({"image": np.zeros((4, 8, 8, 3), np.uint8), "label": np.array([0, 1, 3, 3])}, "class 2 of 4 has no image"),
        ({"image": np.zeros((4, 8, 8, 3), np.uint8)}, "lacks label; it has image"),
        (
            {"image": np.zeros((4, 8, 8, 3), np.uint8), "label": np.array([0, 1, 2, 2**62])},
            "class 3 of .* has no image",
        ),
        ({"image": np.zeros((4, 0, 8, 3), np.uint8), "label": np.arange(4)}, r"shape \(4, 0, 8, 3\)"),
        (
            {"image": np.zeros((4, 8, 8, 3), np.uint8), "label": np.arange(4), "classes": np.array("abcd")},
            r"classes has dtype .* and shape \(\); need names",
        ),
        (
            {"image": np.zeros((4, 8, 8, 3), np.uint8), "label": np.arange(4), "classes": np.array(["a", "b"])},
            "label 3 is beyond the 2 classes",
        ),
    ],
)
def test_arrays_that_cannot_be_prepared_are_reported(arrays, told, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UsageError, match=told):
        prepare("npz", tmp_path / "a.npz", tmp_path / "set", "--size=8")


def test_class_names_are_stored_and_synsets_are_recognised(tmp_path):
    names = np.array([f"n0000000{i}" for i in range(4)])
    np.savez(tmp_path / "a.npz", image=np.zeros((4, 8, 8, 3), np.uint8), label=np.arange(4), classes=names)
    prepare("npz", tmp_path / "a.npz", tmp_path / "set", "--size=8")
    assert about(tmp_path / "set")["classes"] == about(tmp_path / "set")["synsets"] == list(names)
