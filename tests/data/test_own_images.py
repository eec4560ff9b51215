"""Images of the user's own: where their labels are found, and the config that is chosen for them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cfgjax
from cfgjax.base.errors import UsageError
from cfgjax.cli.main import run_command
from cfgjax.data.sources.own_images import choose_shape, find_own_images

CLASSES = ("cat", "dog", "eel")


def picture(i, mode="L", size=(20, 24)):
    rng = np.random.default_rng(i)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    return Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8))


@pytest.fixture
def folders(tmp_path):
    """{kind: folder} of 30 grey images whose labels are in another place of each."""
    found = {}
    for kind in ("folders", "csv", "edm", "prefixes", "none"):
        found[kind] = tmp_path / kind
        found[kind].mkdir()
    rows, numbers = ["file,label"], []
    for i in range(30):
        name = CLASSES[i % 3]
        (found["folders"] / name).mkdir(exist_ok=True)
        files = {"folders": f"{name}/{i}.png", "prefixes": f"{name}_{i}.png"}
        for kind, folder in found.items():
            picture(i).save(folder / files.get(kind, f"{i}.png"))
        rows.append(f"{i}.png,{name}")
        numbers.append([f"{i}.png", i % 3])
    (found["csv"] / "labels.csv").write_text("\n".join(rows))
    (found["edm"] / "dataset.json").write_text(json.dumps({"labels": numbers}))
    return found


@pytest.mark.parametrize("kind", ["folders", "csv", "edm", "prefixes"])
def test_labels_are_found_where_they_are(folders, kind):
    found = find_own_images(folders[kind]).listing
    assert found.classes == (("0", "1", "2") if kind == "edm" else CLASSES)
    for i in range(len(found)):
        number = int("".join(filter(str.isdigit, Path(found.name(i)).stem)))
        assert found[i][1] == number % 3


def test_images_without_labels_are_one_class(folders):
    found = find_own_images(folders["none"])
    assert found.listing.classes == ("images",) and "without guidance" in found.how
    assert len(find_own_images(folders["prefixes"], "none").listing.classes) == 1


def test_many_prefixes_are_no_classes(tmp_path):
    for i in range(12):
        picture(i).save(tmp_path / f"{i:03}_x.png")
    assert len(find_own_images(tmp_path).listing.classes) == 1


def test_numbers_of_edm_are_in_order(tmp_path):
    for i in range(12):
        picture(i).save(tmp_path / f"{i}.png")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [[f"{i}.png", i] for i in range(12)]}))
    assert find_own_images(tmp_path).listing.classes == tuple(map(str, range(12)))


@pytest.mark.parametrize(
    ("size", "mode", "wanted", "chosen"),
    [
        ((20, 24), "L", None, (16, 1)),
        ((500, 400), "RGB", None, (64, 3)),
        ((5, 9), "RGB", None, (8, 3)),
        ((500, 400), "RGB", 128, (128, 3)),
    ],
)
def test_the_size_fits_the_images(tmp_path, size, mode, wanted, chosen):
    for i in range(4):
        picture(i, mode, size).save(tmp_path / f"{i}.png")
    assert choose_shape(find_own_images(tmp_path).listing, wanted)[:2] == chosen


def test_grey_images_in_colour_files_have_one_channel(tmp_path):
    for i in range(4):
        picture(i).convert("RGB").save(tmp_path / f"{i}.png")
    assert choose_shape(find_own_images(tmp_path).listing, None)[1] == 1


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("csv/labels.csv", "0.png,cat", "29 of 30 images have no label in labels.csv, such as 1.png"),
        ("csv/labels.csv", "0.png,cat,dog", "need lines file,label; found '0.png,cat,dog'"),
        ("edm/dataset.json", "[]", "dataset.json has no"),
        ("edm/dataset.json", '{"labels": null}', "dataset.json has no"),
    ],
)
def test_labels_that_are_incomplete_or_damaged_are_one_line(folders, tmp_path, file, text, told):
    (tmp_path / file).write_text(text)
    with pytest.raises(UsageError) as raised:
        find_own_images((tmp_path / file).parent)
    assert told in str(raised.value)


def refused(*words):
    with pytest.raises(UsageError) as raised:
        run_command(["train", *words])
    return str(raised.value)


def test_bad_data_is_refused_before_anything_is_written(folders, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    (tmp_path / "empty").mkdir()
    assert "need a folder of images" in refused(f"--data={tmp_path / 'nothing'}", workdir)
    assert "has no images" in refused(f"--data={tmp_path / 'empty'}", workdir)
    assert "--workdir must be given" in refused(f"--data={folders['csv']}")
    assert "--data and --config are both given" in refused(f"--data={folders['csv']}", workdir, "--config=digits")
    assert "--size has no effect without --data" in refused("--config=digits", workdir, "--size=8")
    assert "--size=9; need one of 8, 16" in refused(f"--data={folders['csv']}", workdir, "--size=9")
    assert "did you mean 'prefixes'" in refused(f"--data={folders['csv']}", workdir, "--labels_from=prefix")
    assert "cat/0.png" in refused(f"--data={folders['folders']}", workdir, "--labels_from=prefixes")
    assert not list(tmp_path.glob("run*"))


SHORT = "--config.train.num_steps=2 --config.train.steps_per_dispatch=2 --config.train.log_every_steps=2 "
SHORT += "--config.model.channels=32 --config.model.head_channels=32 --config.train.batch_size=8 --config.mesh.data=8 "
SHORT += "--config.model.depth=1 --config.model.multipliers=(1,) --config.model.attention_resolutions=() "
SHORT += "--config.sample.num_steps=2 --config.sample.per_cell=1"


@pytest.mark.slow
def test_one_command_prepares_chooses_and_trains_and_a_second_one_resumes(folders, tmp_path, capsys):
    pytest.importorskip("array_record")
    words = ["train", f"--data={folders['csv']}", f"--workdir={tmp_path / 'run'}", "--size=8", *SHORT.split()]
    assert run_command(words) == 0
    out = capsys.readouterr().out
    assert "30 images, 3 classes; labels: labels.csv" in out and "size 8×8, grey" in out
    model = cfgjax.load(tmp_path / "run")
    assert model.classes == list(CLASSES) and model.image_shape == (8, 8, 1) and model.has_null_label
    assert model.sample(["dog", "cat"], 1.0, num_steps=2).shape == (2, 8, 8, 1)
    assert run_command(words) == 0
    assert "nothing left to do" in capsys.readouterr().out


@pytest.mark.slow
def test_images_without_labels_are_trained_without_guidance(folders, tmp_path):
    pytest.importorskip("array_record")
    words = ["train", f"--data={folders['none']}", f"--workdir={tmp_path / 'run'}", "--size=8", *SHORT.split()]
    assert run_command(words) == 0
    model = cfgjax.load(tmp_path / "run")
    assert model.num_classes == 1 and not model.has_null_label
