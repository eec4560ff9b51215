"""Damaged files of prepared sets are errors of one line with the file's name, or are made again if possible."""

import json
import shutil

import numpy as np
import pytest
from images import write_npz
from tiny import open_source

from cfgjax.base.errors import UsageError
from cfgjax.base.files import read_npz
from cfgjax.cli.main import run_command

pytest.importorskip("array_record")
CONFIG = {"source": "prepared", "num_classes": 4, "image_shape": (8, 8, 3)}
COUNT = 300  # two shards


def prepare(folder, *words):
    return run_command(
        ["prepare", "npz", str(folder / "a.npz"), str(folder / "set"), "--size=8", "--workers=1", *words]
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write_npz(folder / "a.npz", count=COUNT)
    prepare(folder, "--encoding=raw")
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A folder with the prepared set `set`, made from `a.npz`."""
    shutil.copytree(made, tmp_path / "folder")
    return tmp_path / "folder"


def interrupted(folder):
    """Takes the set back to where its shards are made and dataset.json is not. Returns the names of the shards."""
    about = json.loads((folder / "set" / "dataset.json").read_text())
    (folder / "set" / "dataset.json").unlink()
    (folder / "set" / "label.npy").unlink()
    return [shard["file"] for shard in about["shards"]]


def flip(path, place=0.5):
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def retyped(path):
    value = json.loads(path.read_text())
    path.write_text(json.dumps({key: [] for key in value} | {"format": 1}))


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": cut,
    "flipped": flip,
    "not UTF-8": lambda path: path.write_bytes(b"\xff" + path.read_bytes()),
    "a list": lambda path: path.write_text("[]"),
    "other types": retyped,
    "no keys": lambda path: path.write_text("{}"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a folder": lambda path: [path.unlink(), path.mkdir()],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_description_is_reported_on_one_line_with_a_remedy(kind, folder):
    DAMAGE[kind](folder / "set" / "dataset.json")
    for use in (
        lambda: open_source(**CONFIG, path=str(folder / "set")),
        lambda: prepare(folder, "--encoding=raw"),
        lambda: run_command(["prepare", "--verify", str(folder / "set")]),
    ):
        with pytest.raises(UsageError, match=r"dataset\.json.*again") as raised:
            use()
        assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_request_is_reported_on_one_line_with_a_remedy(kind, folder):
    interrupted(folder)
    DAMAGE[kind](folder / "set" / "request.json")
    with pytest.raises(UsageError, match=r"request\.json.*again") as raised:
        prepare(folder, "--encoding=raw")
    assert len(str(raised.value).splitlines()) == 1


@pytest.fixture(scope="module")
def indexed(made, tmp_path_factory):
    """A set of which all shards are finished, with what describes them, and dataset.json is not written yet."""
    folder = tmp_path_factory.mktemp("indexed")
    shutil.copy(made / "a.npz", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cfgjax.data.prepare.finish", lambda *args: (_ for _ in ()).throw(UsageError("stopped")))
        with pytest.raises(UsageError, match="stopped"):
            prepare(folder, "--encoding=raw")
    assert len(list((folder / "set").glob("shard-*.json"))) == 2
    return folder


@pytest.mark.parametrize("kind", ["empty", "cut", "flipped", "other types", "deep"])
def test_a_shard_whose_description_is_damaged_is_made_again(kind, indexed, made, tmp_path, caplog):
    folder = shutil.copytree(indexed, tmp_path / "folder")
    DAMAGE[kind](folder / "set" / "shard-00000-of-00002.json")
    assert prepare(folder, "--encoding=raw") == 0
    assert "shard-00000-of-00002.json is damaged" in caplog.text and "made again" in caplog.text
    for name in ("dataset.json", "label.npy"):
        assert (folder / "set" / name).read_bytes() == (made / "set" / name).read_bytes()


@pytest.mark.parametrize("damage", [cut, flip, DAMAGE["zeros"], lambda path: path.unlink()])
def test_a_shard_damaged_during_preparation_is_made_again(damage, indexed, made, tmp_path):
    folder = shutil.copytree(indexed, tmp_path / "folder")
    damage(folder / "set" / "shard-00001-of-00002.array_record")
    assert prepare(folder, "--encoding=raw", "--verify") == 0
    assert (folder / "set" / "dataset.json").read_bytes() == (made / "set" / "dataset.json").read_bytes()


@pytest.mark.parametrize("name", ["shard-00001-of-00002.array_record", "label.npy"])
@pytest.mark.parametrize("kind", ["empty", "cut", "zeros", "longer"])
def test_a_damaged_file_is_found_at_opening(kind, name, folder):
    path = folder / "set" / name
    (DAMAGE | {"longer": lambda path: path.write_bytes(path.read_bytes() + b"0" * 80)})[kind](path)
    for use in (
        lambda: open_source(**CONFIG, path=str(folder / "set")),
        lambda: run_command(["prepare", "--verify", str(folder / "set")]),
    ):
        with pytest.raises(UsageError, match=name):
            use()


def relabelled(folder):
    label = np.load(folder / "set" / "label.npy")
    label[[0, 1]] = label[[1, 0]]
    np.save(folder / "set" / "label.npy", label)


def test_verify_detects_a_changed_byte_anywhere(folder, capsys):
    assert run_command(["prepare", "--verify", str(folder / "set")]) == 0
    assert "300 images match their hashes" in capsys.readouterr().out
    path = folder / "set" / "shard-00000-of-00002.array_record"
    whole = path.read_bytes()
    for place in (0.0, 0.3, 0.6, 0.9999):
        flip(path, place)
        with pytest.raises((OSError, UsageError), match="shard-00000-of-00002.array_record"):
            run_command(["prepare", "--verify", str(folder / "set")])
        path.write_bytes(whole)
    relabelled(folder)
    with pytest.raises(OSError, match=r"label\.npy does not match its hash"):
        run_command(["prepare", "--verify", str(folder / "set")])


def test_sets_of_the_first_format_are_read_and_verified(folder):
    path = folder / "set" / "dataset.json"
    about = json.loads(path.read_text())
    del about["sha256"]
    shards = [{key: shard[key] for key in ("file", "num_examples", "bytes")} for shard in about["shards"]]
    path.write_text(json.dumps(about | {"format": 1, "shards": shards}))
    data = open_source(**CONFIG, path=str(folder / "set"))
    assert np.array_equal(data.images(np.arange(COUNT)), read_npz(folder / "a.npz")["image"])
    assert run_command(["prepare", "--verify", str(folder / "set")]) == 0
    relabelled(folder)
    with pytest.raises(OSError, match="does not match its hash"):
        run_command(["prepare", "--verify", str(folder / "set")])


SHARD = {"file": "a", "num_examples": 1, "bytes": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"shards": [SHARD | {"file": "../a.npz"}]},
        {"shards": []},
        {"shards": [7]},
        {"shards": [SHARD | {"bytes": "1"}]},
        {"shards": [{"file": "a"}]},
        {"errors": [7]},
        {"errors": [{"name": "a"}]},
        {"classes": [1, 2, 3, 4]},
        {"counts": [1]},
        {"converted": {"a": []}},
        {"request": {}},
        {"num_examples": True},
    ],
)
def test_records_of_the_first_format_are_checked_individually(change, folder):
    """It has no hash."""
    path = folder / "set" / "dataset.json"
    about = json.loads(path.read_text())
    del about["sha256"]
    path.write_text(json.dumps(about | {"format": 1} | change))
    for use in (lambda: open_source(**CONFIG, path=str(folder / "set")), lambda: prepare(folder, "--encoding=raw")):
        with pytest.raises(UsageError, match=r"dataset\.json is damaged"):
            use()
