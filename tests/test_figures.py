import errno
import os

import numpy as np
import pytest

from cfgjax.base.errors import UsageError
from cfgjax.cli import main as cli
from cfgjax.cli.sample_outputs import kind_of_output, write_picture
from cfgjax.models.sample_figures import HEADER, image_grid, scatter, weight_name


def test_a_failed_write_of_a_picture_leaves_the_old_one(tmp_path, monkeypatch):
    class Picture:
        def save(self, path, **metadata):
            path.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "grid.png").write_text("old")
    with pytest.raises(OSError, match="No space left on device: '.*grid.png'"):
        write_picture(tmp_path / "grid.png", Picture(), {})
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("grid.png", "old")]


@pytest.mark.parametrize("ending", [".txt", ".fits", ".blp", ".xbm", ".h5"])
def test_an_ending_without_a_colour_format_is_refused_before_sampling(ending, tmp_path):
    with pytest.raises(UsageError, match="the ending must be .png or another image format"):
        cli.run_command(["sample", f"--workdir={tmp_path}", f"--out={tmp_path}/grid{ending}"])


@pytest.mark.parametrize("ending", [".png", ".PNG", ".jpg", ".webp", ".pdf", ".tiff"])
def test_common_endings_are_pictures(ending, tmp_path):
    assert kind_of_output(f"{tmp_path}/grid{ending}") == "picture"


def test_a_cell_shows_its_image_enlarged_pixel_by_pixel():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 2, 8, 8, 3), np.uint8)
    picture = np.asarray(image_grid(images, ["0", "1"], ["w=0", "w=1", "w=3"]))
    enlarged = images[1, 0, 0].repeat(4, axis=0).repeat(4, axis=1)
    top = HEADER + 8 * 4 + 2
    found = [x for x in range(picture.shape[1] - 32) if np.array_equal(picture[top : top + 32, x : x + 32], enlarged)]
    assert len(found) == 1


def test_grey_images_become_grey_rgb():
    picture = np.asarray(image_grid(np.full((1, 1, 1, 8, 8, 1), 77, np.uint8), ["7"], [weight_name(1.0)]))
    assert (picture == 77).all(axis=-1).sum() >= 32 * 32


def test_points_are_drawn_at_their_coordinates():
    labels = np.zeros(50, int)
    left, right = (np.tile([x, 0.0], (50, 1)) for x in (-1.0, 1.0))
    picture = np.asarray(scatter({"exact": [left, right]}, labels, ["w=0", "w=1"]))
    blue = (picture[..., 2] > picture[..., 0].astype(int) + 30).any(axis=0)
    columns = np.flatnonzero(blue) / picture.shape[1]
    assert columns.min() < 0.25  # left in the left plot
    assert columns.max() > 0.75  # right in the right plot


def test_names_of_weights_show_both_conventions():
    assert weight_name(0.5) == "w=0.5 (s=1.5)"
