"""`cfgjax evaluate --samples`: images that something else made, measured without a run."""

import csv
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import EXPERIMENTS

# these take load_networks from its module, so they are imported before a test replaces it there
import cfgjax.evaluation.frontier.plan
import cfgjax.training.hooks.frontier_metrics  # noqa: F401
from cfgjax.base.errors import UsageError
from cfgjax.cli.main import run_command
from cfgjax.evaluation.features import networks
from cfgjax.evaluation.features.foreign import open_samples
from cfgjax.evaluation.features.networks import FeatureNetwork
from cfgjax.evaluation.features.reference import make_reference
from cfgjax.evaluation.frontier.measure import measure

COUNT, SHAPE = 40, (8, 8, 1)
IMAGES = np.random.default_rng(0).integers(0, 256, (2 * COUNT, *SHAPE), np.uint8)
LABELS = np.arange(COUNT) % 10


def halves(params, images):
    """The means of four parts of an image; as logits those of ten."""
    flat = images.reshape(len(images), -1).astype(jnp.float32) / 255
    return {"features": flat.reshape(len(flat), 4, -1).mean(-1), "logits": flat[:, :10]}


@pytest.fixture(autouse=True)
def network(monkeypatch):
    """The feature network that every command loads."""
    own = FeatureNetwork("classifier", "digest", halves, {}, judges=True)
    monkeypatch.setattr(networks, "load_networks", lambda plan, data, **options: (own, None))
    return own


@pytest.fixture
def files(tmp_path):
    """The folder of a reference and of samples in every form."""
    np.savez(tmp_path / "reference.npz", arr_0=IMAGES[COUNT:])
    np.savez(tmp_path / "labelled.npz", arr_0=IMAGES[:COUNT], arr_1=LABELS)
    np.savez(tmp_path / "bare.npz", arr_0=IMAGES[:COUNT])
    for i, image in enumerate(IMAGES[:COUNT]):
        path = tmp_path / "folder" / f"{i // 20:03}" / f"{i:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
    return tmp_path


def evaluated(files, samples, *flags):
    """The content of samples.json."""
    words = [f"--samples={files / samples}", f"--out={files}/out-{samples}", "--features=classifier"]
    assert run_command(["evaluate", *words, f"--reference={files}/reference.npz", *flags]) == 0
    return json.loads((files / f"out-{samples}" / "samples.json").read_text())


def test_foreign_samples_have_the_metrics_of_the_same_samples_of_a_run(files, network, capsys):
    read = lambda start, stop: (IMAGES[start:stop], LABELS[start:stop])
    other = lambda start, stop: (IMAGES[COUNT:][start:stop], LABELS[start:stop])
    expected = measure(read, COUNT, network, make_reference(other, COUNT, network, "images"))
    found = evaluated(files, "labelled.npz")
    known = {name: value for name, value in found["metrics"].items() if not name.endswith("_interval")}
    assert known == json.loads(json.dumps(expected))
    assert found["metrics"]["FD-classifier_interval"] > 0
    assert found["num_samples"] == COUNT
    assert f"accuracy           {expected['accuracy']:.4g} ± " in capsys.readouterr().out
    with open(files / "out-labelled.npz" / "samples.csv") as file:
        (row,) = csv.DictReader(file)
    assert float(row["FD-classifier"]) == expected["FD-classifier"]
    assert len((files / "out-labelled.npz" / "per_class.csv").read_text().splitlines()) == 11


def test_a_folder_and_a_file_of_the_same_images_measure_the_same_without_labels(files):
    labelled, bare, folder = (evaluated(files, name)["metrics"] for name in ("labelled.npz", "bare.npz", "folder"))
    assert folder == bare
    assert bare == {
        name: value for name, value in labelled.items() if not name.startswith(("accuracy", "log_posterior"))
    }
    assert not (files / "out-folder" / "per_class.csv").exists()


def test_a_result_has_a_protocol_that_says_what_is_unknown(files, capsys):
    card = evaluated(files, "labelled.npz", "--num_samples=30")["protocol"]
    known = {"samples": "30", "labels": "those of the file", "images": "8×8×1", "features": "classifier digest"}
    assert known.items() <= card.items()
    assert "reference.npz" in card["reference"] and card["examples of the reference"] == str(COUNT)
    assert "FD-classifier" in card["metrics"] and str(files / "labelled.npz") in card["file"]
    assert {card[name] for name in ("w", "rule", "sampler", "T", "seed", "EMA", "checkpoint")} == {"unknown"}
    told = capsys.readouterr().out.split("protocol:")[1]
    assert all(name in told.split("unknown")[1] for name in ("rule", "sampler", "seed"))
    assert evaluated(files, "bare.npz")["protocol"]["labels"] == "unknown"


def test_a_protocol_that_is_stored_with_the_samples_is_part_of_that_of_the_result(files):
    stored = {"w": "2", "rule": "cfg()", "samples": "99", "cfgjax": "0.0.7", "effective sample size": "mean 3"}
    text = json.dumps(stored)
    np.savez(files / "own.npz", arr_0=IMAGES[:COUNT], protocol=np.asarray(text))
    (files / "folder" / "protocol.json").write_text(text)
    for name in ("own.npz", "folder"):
        card = evaluated(files, name)["protocol"]
        told = {"w": "2", "rule": "cfg()", "effective sample size": "mean 3", "drawn with cfgjax": "0.0.7"}
        assert told.items() <= card.items()
        assert (card["samples"], card["sampler"]) == (str(COUNT), "unknown")


@pytest.mark.parametrize("stored", ["", "[1]", '{"w": 1}', "{", "[" * 10**5])
def test_a_damaged_stored_protocol_is_no_error(tmp_path, stored):
    np.savez(tmp_path / "own.npz", arr_0=IMAGES, protocol=np.asarray(stored))
    assert open_samples(tmp_path / "own.npz").protocol == {}


@pytest.mark.parametrize("as_folder", [False, True])
def test_images_that_were_not_scaled_to_255_are_warned_of_and_measured(files, caplog, as_folder):
    dark = IMAGES[:COUNT] // 16
    if as_folder:
        for path, image in zip(sorted(files.glob("folder/*/*.png")), dark, strict=True):
            Image.fromarray(image[..., 0]).save(path)
    else:
        np.savez(files / "dark.npz", arr_0=dark)
    assert evaluated(files, "folder" if as_folder else "dark.npz")["num_samples"] == COUNT
    (line,) = (record.getMessage() for record in caplog.records if "largest value" in record.getMessage())
    assert "is 15" in line and "\n" not in line
    caplog.clear()
    evaluated(files, "bare.npz")
    assert "largest value" not in caplog.text


def test_the_first_samples_are_measured_if_fewer_are_requested(files):
    np.savez(files / "first.npz", arr_0=IMAGES[:20])
    assert evaluated(files, "bare.npz", "--num_samples=20")["metrics"] == evaluated(files, "first.npz")["metrics"]


@pytest.mark.slow
def test_the_data_of_a_config_can_be_the_reference(files):
    words = f"evaluate --samples={files}/bare.npz --out={files}/out --features=classifier"
    assert run_command([*words.split(), f"--config={EXPERIMENTS}/digits.py"]) == 0
    assert "training examples" in json.loads((files / "out" / "samples.json").read_text())["reference"]["origin"]


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"image": IMAGES}, "has image; need arr_0"),
        ({"arr_0": IMAGES / np.float32(255)}, r"dtype float32 and shape \(80, 8, 8, 1\); need images uint8"),
        ({"arr_0": IMAGES.astype(np.int64)}, "dtype int64"),
        ({"arr_0": IMAGES[..., 0]}, r"shape \(80, 8, 8\); need images uint8"),
        ({"arr_0": np.moveaxis(np.repeat(IMAGES, 3, -1), -1, 1)}, r"shape \(80, 3, 8, 8\)"),
        ({"arr_0": IMAGES // 255}, "no value above 1; need values 0 … 255"),
        ({"arr_0": IMAGES[:0]}, r"shape \(0, 8, 8, 1\)"),
        ({"arr_0": IMAGES[:1]}, "has 1 image; metrics need at least 2"),
        ({"arr_0": IMAGES, "arr_1": LABELS}, r"arr_1 has dtype int64 and shape \(40,\); need 80 integers"),
        ({"arr_0": IMAGES[:COUNT], "arr_1": LABELS / 2}, "arr_1 has dtype float64"),
    ],
)
def test_a_file_that_cannot_be_measured_is_a_one_line_error(tmp_path, arrays, text):
    with pytest.raises(UsageError, match=text) as e:
        open_samples(saved(tmp_path / "samples.npz", **arrays))
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["size", "mode", "damaged", "empty"])
def test_a_folder_that_cannot_be_measured_is_a_one_line_error(tmp_path, kind):
    if kind != "empty":
        Image.fromarray(IMAGES[0, ..., 0]).save(tmp_path / "a.png")
    odd = {"size": Image.new("L", (8, 9)), "mode": Image.new("RGB", (8, 8))}
    if kind in odd:
        odd[kind].save(tmp_path / "b.png")
    (tmp_path / ("b.png" if kind == "damaged" else "notes.txt")).write_text("no image")
    text = {"empty": "has no images", "damaged": r"cannot read .*b\.png"}.get(kind, r"a\.png is 8×8×1 and b\.png is")
    with pytest.raises(UsageError, match=text) as e:
        open_samples(tmp_path)
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--features=classifier", "--samples needs a reference"),
        ("--reference={files}/reference.npz", "--features must be given"),
        ("--features=mixture --reference={files}/reference.npz", "--features=mixture is for points"),
        (
            "--features=classifier --reference={files}/reference.npz --num_samples=41",
            "has 40 images; --num_samples is 41",
        ),
        ("--features=classifier --reference={files}/none.npz", "none.npz: No such file"),
        ("--features=classifier --reference={files}/other.npz", r"has images uint8 \(4, 16, 16, 1\)"),
        (
            "--features=classifier --config={experiments}/fashion_mnist.py",
            r"have shape \(8, 8, 1\), the data \(32, 32, 1\)",
        ),
        ("--workdir=run", "--workdir has no effect with --samples"),
        ("--guidance=1", "--guidance has no effect with --samples"),
        ("--make_reference", "--make_reference and --samples are both given"),
    ],
)
def test_bad_flags_are_a_one_line_error_and_nothing_is_written(files, flags, text):
    np.savez(files / "other.npz", arr_0=np.full((4, 16, 16, 1), 9, np.uint8))
    flags = flags.format(files=files, experiments=EXPERIMENTS)
    with pytest.raises(UsageError, match=text) as e:
        run_command(f"evaluate --samples={files}/bare.npz --out={files}/out {flags}".split())
    assert len(str(e.value).splitlines()) == 1
    assert not list(files.glob("out/*"))


def test_a_label_beyond_the_classes_is_named(files):
    np.savez(files / "wrong.npz", arr_0=IMAGES[:COUNT], arr_1=LABELS + 5)
    words = f"evaluate --samples={files}/wrong.npz --out={files}/out --features=classifier"
    with pytest.raises(UsageError, match=r"wrong.npz: label 5 is 10; need 0 … 9"):
        run_command([*words.split(), f"--config={EXPERIMENTS}/digits.py"])
