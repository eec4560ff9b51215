"""Crops and conversions of encoded images."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfgjax.base.errors import UsageError
from cfgjax.base.files import read_npz
from cfgjax.data.images.decoding import CROPS, Converter

GOLDENS = Path(__file__).parents[1] / "goldens"


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize("crop", CROPS)
def test_an_image_of_the_right_size_is_not_changed(crop):
    image = noise(8, 8)
    made, notes = Converter(8, crop, 3)(encoded(Image.fromarray(image)))
    assert np.array_equal(made, image) and notes == []


@pytest.mark.parametrize("crop", ["adm", "lanczos", "area"])
@pytest.mark.parametrize("shape", [(8, 24), (24, 8)])
def test_the_crop_of_a_long_image_is_its_middle(crop, shape):
    image = noise(*shape)
    middle = image[:, 8:16] if shape[1] == 24 else image[8:16]
    assert np.array_equal(Converter(8, crop, 3)(image)[0], middle)


@pytest.mark.parametrize(("crop", "factor"), [("area", 3), ("area", 4), ("adm", 2), ("adm", 4)])
def test_area_resizing_and_adm_halving_are_means_over_squares(crop, factor):
    image = 16 * (noise(8 * factor, 8 * factor) // 16)
    squares = image.reshape(8, factor, 8, factor, 3).mean(axis=(1, 3))
    assert np.abs(Converter(8, crop, 3)(image)[0] - squares).max() <= 1  # rounded after rows and after columns


def test_adm_crop_equals_that_of_guided_diffusion():
    """goldens/adm_crop.npz: its `center_crop_arr` to 16 pixels of the seeded noise below."""
    rng, golden = np.random.default_rng(7), read_npz(GOLDENS / "adm_crop.npz")
    for height, width in [(75, 50), (23, 40), (130, 67), (12, 9)]:
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        made = Converter(16, "adm", 3)(image)[0]
        assert (
            np.abs(made.astype(int) - golden[f"{height}x{width}"]).max() <= 1
        )  # versions of Pillow may round otherwise


def test_adm_crop_halves_only_while_the_image_is_twice_as_large():
    """Below twice the size it is one bicubic step, which overshoots at an edge as no mean of squares does."""
    step = np.repeat(np.where(np.arange(15) < 8, 60, 180).astype(np.uint8)[None, :], 15, axis=0)[..., None]
    made = Converter(8, "adm", 1)(step)[0]
    assert made.min() < 60 and made.max() > 180
    assert Converter(8, "area", 1)(step)[0].min() == 60


def test_padding_centres_the_image_on_black_and_refuses_larger_ones():
    image = noise(28, 28, 1)
    made, _ = Converter(32, "pad", 1)(image)
    assert np.array_equal(made[2:30, 2:30], image)
    assert made.sum() == image.sum(dtype=int)
    with pytest.raises(ValueError, match="is 40×28, larger than the padded size 32×32"):
        Converter(32, "pad", 1)(noise(28, 40))


RED = (200, 30, 40)


def plain(mode, colour):
    return Image.new(mode, (8, 8), colour)


def with_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, :4] = 255  # white on the left
    return encoded(Image.fromarray(image), exif=exif)


def sixteen_bits():
    return Image.fromarray(np.full((8, 8), 100 * 257, np.uint16))


@pytest.mark.parametrize(
    ("data", "channels", "colour", "told"),
    [
        (encoded(plain("L", 70)), 3, (70, 70, 70), ["grey, made RGB"]),
        (encoded(plain("L", 70)), 1, (70,), []),
        (encoded(plain("1", 1)), 3, (255, 255, 255), ["grey, made RGB"]),
        (encoded(plain("RGB", RED)), 1, (82,), ["in colour, made grey"]),  # .299 R + .587 G + .114 B
        (encoded(plain("RGBA", (*RED, 0))), 3, (255, 255, 255), ["with transparency, laid on white"]),
        (encoded(plain("RGBA", (*RED, 255))), 3, RED, ["with transparency, laid on white"]),
        (encoded(plain("LA", (70, 255))), 3, (70, 70, 70), ["with transparency, laid on white"]),
        (encoded(plain("RGB", RED).quantize(2)), 3, RED, ["with a palette, made RGB"]),
        (encoded(plain("CMYK", (0, 255, 255, 0)), "JPEG"), 3, (255, 0, 0), ["CMYK, made RGB"]),
        (encoded(sixteen_bits()), 3, (100, 100, 100), ["of 16 bits, made 8", "grey, made RGB"]),
        (encoded(plain("RGB", RED).resize((4, 4))), 3, RED, ["smaller than 8 pixels, enlarged"]),
    ],
)
def test_images_of_other_kinds_are_converted_and_counted(data, channels, colour, told):
    made, notes = Converter(8, "adm", channels)(data)
    assert made.shape == (8, 8, channels) and made.dtype == np.uint8
    assert np.abs(made - np.array(colour, int)).max() <= 2 * (b"JFIF" in data or b"Adobe" in data)
    assert notes == told


def test_images_are_rotated_by_their_exif_orientation():
    made, notes = Converter(8, "adm", 3)(with_orientation(6))  # to be turned clockwise by a quarter
    assert notes == ["turned as EXIF says"]
    assert (made[:4] == 255).all() and (made[4:] == 0).all()
    assert Converter(8, "adm", 3)(with_orientation(1))[1] == []


def test_data_that_cannot_be_built_are_reported():
    with pytest.raises(UsageError, match="unknown crop 'admm', did you mean 'adm'"):
        Converter(8, "admm", 3)
    with pytest.raises(UsageError, match=r"channels is 4; need 1 \(grey\) or 3 \(RGB\)"):
        Converter(8, "adm", 4)
