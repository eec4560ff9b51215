import numpy as np
import pytest
from tiny import open_source

from cfgjax.base.errors import UsageError

SHAPE = (2, 2, 1)


@pytest.fixture
def write(tmp_path):
    """write(**arrays) → the data section of a config that reads them."""

    def write(**arrays):
        np.savez(tmp_path / "data.npz", **arrays)
        return {"source": "npz", "path": str(tmp_path / "data.npz"), "num_classes": 3, "image_shape": SHAPE}

    return write


def images(n=5):
    return np.zeros((n, *SHAPE), np.float32)


def test_an_npz_is_read_exactly(write):
    image = np.arange(20, dtype=np.uint8).reshape(5, *SHAPE)
    dataset = open_source(**write(image=image, label=np.array([0, 1, 2, 0, 1])))
    assert np.array_equal(dataset.image, image)
    assert dataset.label.tolist() == [0, 1, 2, 0, 1]
    assert dataset.label.dtype == np.int32


def bad_value(value):
    image = images()
    image[3, 1, 0, 0] = value
    return image


LABELS = np.array([0, 1, 2, 0, 1])


def test_the_reported_index_is_that_of_the_file_whatever_the_split(write):
    label = np.zeros(14, np.int32)
    label[13] = 7
    with pytest.raises(UsageError, match="label 13 is 7"):
        open_source(**write(image=images(14), label=label), split="train")


def test_a_corrupted_archive_and_a_single_array_are_reported(write, tmp_path):
    data = write(image=np.random.default_rng(0).random((500, *SHAPE), np.float32), label=np.zeros(500, np.int32))
    np.savez_compressed(data["path"], image=np.zeros((500, *SHAPE), np.float32), label=np.zeros(500, np.int32))
    content = bytearray((tmp_path / "data.npz").read_bytes())
    content[60:90] = bytes(30)
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(UsageError, match="cannot read"):
        open_source(**data)
    np.save(tmp_path / "array.npy", images())
    with pytest.raises(UsageError, match="it is one array"):
        open_source(**{**data, "path": str(tmp_path / "array.npy")})


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"image": images(), "label": np.array([0, 1, 3, 0, 1])}, "label 2 is 3; need 0 … 2"),
        ({"image": images(), "label": np.array([0, 1, 2, 0, -1])}, "label 4 is -1; need 0 … 2"),
        ({"image": images(), "label": LABELS.astype(np.float32)}, "label has dtype float32"),
        ({"image": images(), "label": LABELS[:, None]}, r"shape \(5, 1\); need integers"),
        ({"image": images(), "label": LABELS[:4]}, r"images of shape \(5, 2, 2, 1\) and labels of shape \(4,\)"),
        ({"image": bad_value(np.nan), "label": LABELS}, "image 3 has a value that is not finite"),
        ({"image": bad_value(1.5), "label": LABELS}, "image 3 has the value 1.5, outside"),
        ({"image": images().astype(np.float64), "label": LABELS}, "image has dtype float64"),
        ({"image": images()[..., 0], "label": LABELS}, r"image has shape \(5, 2, 2\); .*\('N', 2, 2, 1\)"),
        ({"image": images(0), "label": LABELS[:0]}, r"image has shape \(0, 2, 2, 1\)"),
        ({"images": images(), "label": LABELS}, "lacks image; it has images, label"),
        ({"image": np.array([None] * 5), "label": LABELS}, "cannot read"),
    ],
)
def test_bad_arrays_are_reported_by_index(write, arrays, told):
    with pytest.raises(UsageError, match=told):
        open_source(**write(**arrays))


def test_files_that_are_no_archives_are_reported(tmp_path):
    (tmp_path / "data.npz").write_bytes(b"no archive")
    for path in ("data.npz", "missing.npz"):
        with pytest.raises(UsageError, match=f"cannot read .*{path}"):
            open_source(source="npz", path=str(tmp_path / path), num_classes=3, image_shape=SHAPE)


def test_options_of_another_source_are_reported():
    digits = {"num_classes": 10, "image_shape": (8, 8, 1)}
    with pytest.raises(UsageError, match="unknown config key 'data.pth', did you mean 'path'"):
        open_source(source="npz", pth="x", **digits)
    with pytest.raises(UsageError, match="config.data lacks path"):
        open_source(source="npz", **digits)
    with pytest.raises(UsageError, match="unknown data source 'digit', did you mean 'digits'"):
        open_source(source="digit", **digits)


def test_mixture_points_follow_their_labels():
    means = ((0.0, 5.0), (5.0, 0.0), (-5.0, -5.0))
    toy = {"means": means, "stds": (0.5, 1.0, 0.25), "weights": (0.5, 0.3, 0.2), "num_examples": 4000, "seed": 1}
    dataset = open_source(source="mixture", num_classes=3, image_shape=(2,), **toy)
    for k, mean in enumerate(means):
        points = dataset.image[dataset.label == k]
        assert np.allclose(points.mean(axis=0), mean, atol=0.15)
        assert np.allclose(points.std(axis=0), toy["stds"][k], rtol=0.1)
        assert abs((dataset.label == k).mean() - toy["weights"][k]) < 0.03
