"""Folders of images: each file once in spite of links, names of any bytes, classes ordered by numbers."""

import json
import os
import shutil
import socket

import numpy as np
import pytest
from images import write_folder
from PIL import Image
from tiny import open_source

from cfgjax.base.errors import UsageError, printable
from cfgjax.cli.main import run_command
from cfgjax.data.sources.folder import list_folder


def prepare(*words):
    return run_command(["prepare", "folder", *map(str, words), "--size=8", "--workers=1"])


def about(path):
    return json.loads((path / "dataset.json").read_text())


def link(target, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(target, path)


def unix_socket(path):
    opened = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(path.parent)  # its path may be too long
    try:
        opened.bind(path.name)
    finally:
        os.chdir(here)
        opened.close()


def nested(root):
    """A linked folder, a part of which another link leads to."""
    shutil.copytree(root / "bee", root.parent / "outside" / "part")
    link(root.parent / "outside" / "part", root / "ant" / "x")
    link(root.parent / "outside", root / "ant" / "y")


ADDED = {  # what is added to a folder, and the images that class ant has by it besides its own
    "itself": (lambda root: link(".", root / "ant" / "loop"), 0),
    "itself, by its whole path": (lambda root: link(root / "ant", root / "ant" / "part0" / "loop"), 0),
    "two that lead to each other's folders": (
        lambda root: [link("../part1", root / "ant/part0/a"), link("../part0", root / "ant/part1/b")],
        0,
    ),
    "all classes": (lambda root: link("..", root / "ant" / "up"), 0),
    "what is above": (lambda root: link("../..", root / "ant" / "up"), 0),
    "all classes, out of another folder": (
        lambda root: [link(root, root.parent / "outside" / "back"), link(root.parent / "outside", root / "ant" / "x")],
        0,
    ),
    "a link to itself": (lambda root: link("a.png", root / "ant" / "a.png"), 0),
    "nothing": (lambda root: link("none.png", root / "ant" / "a.png"), 0),
    "a device": (lambda root: link("/dev/zero", root / "ant" / "a.png"), 0),
    "a pipe": (lambda root: os.mkfifo(root / "ant" / "a.png"), 0),
    "a link to a pipe": (lambda root: [os.mkfifo(root / "ant/pipe"), link("pipe", root / "ant" / "a.png")], 0),
    "a socket": (lambda root: unix_socket(root / "ant" / "a.png"), 0),
    "a file twice": (lambda root: [link("part0/0.png", root / "ant" / n) for n in ("0.png", "z.png")], 0),
    "a file of another class": (lambda root: link("../bee/part0/0.png", root / "ant" / "b.png"), 1),
    "another class": (lambda root: link("../bee", root / "ant" / "more"), 4),
    "a folder outside": (
        lambda root: [shutil.copytree(root / "bee", root.parent / "out"), link(root.parent / "out", root / "ant/x")],
        4,
    ),
    "a folder outside, twice": (nested, 4),
    "a class that is all": (lambda root: link(".", root / "loop"), 0),
    "a folder of the name of an image": (lambda root: (root / "ant" / "folder.png").mkdir(), 0),
}


@pytest.mark.parametrize("name", ADDED)
def test_each_file_is_one_example_of_its_class(name, tmp_path, caplog):
    root = write_folder(tmp_path / "d" / "images")
    before = list_folder(root)
    add, more = ADDED[name]
    add(root)
    found = list_folder(root)
    assert np.bincount(found.label).tolist() == [4 + more, 4, 4]
    assert set(before.files) <= set(found.files) and found.classes == before.classes
    passed_over = any(note.startswith("passed over") for note in found.notes)
    assert passed_over == (more == 0 and "name of an image" not in name) or name == "a folder outside, twice"
    data = open_source(source="folder", path=str(root), num_classes=3, image_shape=(8, 8, 3))
    assert len(data.images(np.arange(12 + more))) == 12 + more
    assert ("passed over" in caplog.text) == passed_over


def test_skipped_files_are_listed_and_do_not_change_the_data_set(tmp_path, capsys):
    root = write_folder(tmp_path / "images")
    for name in ("itself", "a pipe", "nothing"):
        ADDED[name][0](root)
        capsys.readouterr()
        (root / "ant" / "a.png").unlink(missing_ok=True) if name == "a pipe" else None
    assert prepare(root, tmp_path / "set") == 0
    out = capsys.readouterr().out
    assert "loop" in out and "ant/a.png" in out
    assert about(tmp_path / "set")["counts"] == [4, 4, 4]


def test_a_class_folder_that_links_to_another_is_a_class_and_gives_a_warning(tmp_path):
    root = write_folder(tmp_path / "images", classes=("ant", "bee"))
    link("ant", root / "wasp")
    found = list_folder(root)
    assert found.classes == ("ant", "bee", "wasp") and np.bincount(found.label).tolist() == [4, 4, 4]
    assert any("warning: links put files into several classes: 4" in note for note in found.notes)


STRANGE = [b"caf\xe9", b"\xff\xfe", "kafé".encode(), b"new\nline", b"\x1b[31m", b"a b'c\"", b"\xed\xa0\x80"]


def test_names_of_any_bytes_are_stored_and_printed(tmp_path, capsys):
    root = os.fsencode(write_folder(tmp_path / "images", classes=("ant", *map(str, range(len(STRANGE)))), count=1))
    for i, name in enumerate(STRANGE):
        os.rename(root + f"/{i}".encode(), root + b"/" + name)
        with open(root + b"/ant/" + name + b".png", "wb") as file:
            file.write(b"broken")
    for _ in range(2):  # made, and found made
        assert prepare(tmp_path / "images", tmp_path / "set") == 0
        out = capsys.readouterr().out
        out.encode("utf-8")
        assert "\x1b" not in out and "new\nline" not in out
    told = about(tmp_path / "set")
    assert {os.fsencode(name) for name in told["classes"]} == {b"ant", *STRANGE}
    assert {os.fsencode(error["name"]) for error in told["errors"]} == {b"ant/" + name + b".png" for name in STRANGE}
    with pytest.raises(UsageError) as raised:
        prepare(tmp_path / "images", tmp_path / "other", "--max_errors=0")
    assert str(raised.value).isprintable()
    config = {"num_classes": 1 + len(STRANGE), "image_shape": (8, 8, 3)}
    data = open_source(source="folder", path=str(tmp_path / "images"), **config)
    with pytest.raises(OSError, match="cannot decode ant/"):
        data.images(np.arange(len(data)))


@pytest.mark.parametrize("name", STRANGE[:2])
def test_a_prepared_set_may_be_in_a_folder_of_any_name(name, tmp_path, capsys):
    root, out = write_folder(tmp_path / "images", classes=("ant",)), tmp_path / os.fsdecode(name)
    assert prepare(root, out) == 0
    data = open_source(source="prepared", path=str(out), num_classes=1, image_shape=(8, 8, 3))
    assert len(data.images(np.arange(len(data)))) == len(data)
    assert run_command(["prepare", "--verify", str(out)]) == 0


def test_a_terminal_that_only_supports_ascii_works(tmp_path):
    root = os.fsencode(write_folder(tmp_path / "images", classes=("ant", "bee")))
    os.rename(root + b"/bee", root + b"/caf\xe9")
    found = list_folder(tmp_path / "images").classes
    assert printable(found[1]) == "caf\\udce9" and printable("kafé") == "kafé"


@pytest.mark.parametrize(
    ("names", "numeric", "out_of_order"),
    [
        (("0", "1", "2", "10", "11"), ("0", "1", "2", "10", "11"), True),
        (("00", "01", "02", "10"), ("00", "01", "02", "10"), False),
        (("class1", "class2", "class10"), ("class1", "class2", "class10"), True),
        (("-1", "0", "1"), ("-1", "0", "1"), False),
        (("-2", "-1", "0"), ("-2", "-1", "0"), True),
        (("0.25", "0.5", "10", "9"), ("0.25", "0.5", "9", "10"), True),
        (("ant", "bee", "cat"), ("ant", "bee", "cat"), False),
        (("n01440764", "n01443537"), ("n01440764", "n01443537"), False),
        (("1", "01", "2"), ("01", "1", "2"), False),
    ],
)
def test_classes_named_by_numbers_are_ordered_by_them_on_request(names, numeric, out_of_order, tmp_path):
    root = write_folder(tmp_path / "images", classes=names, count=1)
    by_name, by_number = list_folder(root), list_folder(root, "numeric")
    assert by_name.classes == tuple(sorted(names)) and by_number.classes == numeric
    assert [file.partition("/")[0] for file in by_number.files] == list(numeric)
    assert any("ordered by name" in note for note in by_name.notes) == out_of_order
    assert not by_number.notes


def test_another_order_of_classes_is_printed_recorded_and_changes_the_hash(tmp_path, capsys):
    root = write_folder(tmp_path / "images", classes=("0", "2", "10"), count=1)
    prepare(root, tmp_path / "set")
    out = capsys.readouterr().out
    assert "classes: 0 0, 1 10, 2 2" in out and "warning: classes are named by numbers" in out
    with pytest.raises(UsageError, match="class_order is None there, 'numeric' here"):
        prepare(root, tmp_path / "set", "--class_order=numeric")
    prepare(root, tmp_path / "ordered", "--class_order=numeric")
    out = capsys.readouterr().out
    assert "classes: 0 0, 1 2, 2 10" in out and "warning" not in out
    config = {"source": "folder", "path": str(root), "num_classes": 3, "image_shape": (8, 8, 3)}
    direct = open_source(**config, class_order="numeric")
    prepared = open_source(**config | {"source": "prepared", "path": str(tmp_path / "ordered")})
    assert direct.classes == prepared.classes == ("0", "2", "10")
    assert np.array_equal(direct.images(np.arange(3)), prepared.images(np.arange(3)))
    with pytest.raises(UsageError, match="unknown class_order 'numbers'"):
        open_source(**config, class_order="numbers")
    with pytest.raises(UsageError, match="--class_order is only for folders"):
        run_command(["prepare", "npz", "a.npz", "out", "--size=8", "--class_order=numeric"])


@pytest.mark.parametrize("out", ["", "out", "ant/out", "../link/out", "../images"])
def test_a_data_set_is_not_prepared_into_its_own_input(out, tmp_path):
    root = write_folder(tmp_path / "images")
    link(root, tmp_path / "link")
    before = sorted(os.walk(root))
    for given in (root, tmp_path / "link"):
        with pytest.raises(UsageError, match="is inside IN"):
            prepare(given, root / out)
    assert sorted(os.walk(root)) == before


def test_endless_links_as_input_or_output_are_refused(tmp_path):
    link("loop", tmp_path / "loop")
    root = write_folder(tmp_path / "images")
    for words in ((tmp_path / "loop", tmp_path / "out"), (root, tmp_path / "loop"), (root, tmp_path / "loop" / "out")):
        with pytest.raises(UsageError, match="loop"):
            prepare(*words)


def test_a_file_above_the_limit_of_pixels_is_named(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "images", size=(30, 30))
    Image.new("RGB", (100, 100)).save(root / "bee" / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    data = open_source(source="folder", path=str(root), num_classes=3, image_shape=(8, 8, 3))
    with pytest.raises(OSError, match=r"cannot decode bee/large\.png: .*pixels"):
        data.images(np.arange(len(data)))


def test_descriptions_of_broken_files_do_not_differ_from_run_to_run(tmp_path):
    root = write_folder(tmp_path / "images")
    (root / "bee" / "a.png").write_bytes(b"no image")
    (root / "bee" / "b.gif").write_bytes(b"")
    for out in ("one", "two"):
        prepare(root, tmp_path / out)
    assert (tmp_path / "one" / "dataset.json").read_bytes() == (tmp_path / "two" / "dataset.json").read_bytes()
    assert "object at" not in json.dumps(about(tmp_path / "one"))


@pytest.mark.parametrize("ending", ["BMP", "tif", "tiff", "gif", "jfif", "JPEG"])
def test_files_of_all_formats_are_images(ending, tmp_path):
    root = write_folder(tmp_path / "images", ending=ending)
    found = list_folder(root)
    assert len(found) == 12 and not found.notes
