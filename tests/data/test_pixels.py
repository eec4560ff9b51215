"""Pixels of image files follow their format's specification, and unreadable files give a reason."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from image_files import GREY, GREY_ALPHA, PALETTE, RGB, RGB_ALPHA, SAMPLES, chunk, packed, png, tiff
from PIL import Image, ImageCms, features

from cfgjax.data.images.pixels import decode_image, reason_of

DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGB_ALPHA: (8, 16)}
KINDS = [
    (colour, depth, interlaced, keyed)
    for colour, depths in DEPTHS.items()
    for depth, interlaced, keyed in itertools.product(depths, (False, True), (False, True))
    if not (keyed and colour in (GREY_ALPHA, RGB_ALPHA))
]


def rgb(data):
    return np.asarray(decode_image(data)[0].convert("RGB")).astype(float)


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def meaning(samples, colour, depth, key, palette, opacity):
    """[H, W, 3] in 0 … 255: what a PNG means, laid on white, by its specification."""
    scaled = samples * 255 / (2**depth - 1)
    alpha = np.ones(samples.shape[:2])
    if colour == PALETTE:
        scaled, alpha = palette[samples[..., 0]].astype(float), opacity[samples[..., 0]] / 255
    elif colour in (GREY_ALPHA, RGB_ALPHA):
        scaled, alpha = scaled[..., :-1], scaled[..., -1] / 255
    elif key is not None:
        alpha = (samples != key).any(axis=-1).astype(float)
    return alpha[..., None] * scaled + (1 - alpha[..., None]) * 255


@pytest.mark.parametrize(("colour", "depth", "interlaced", "keyed"), KINDS)
def test_a_png_is_read_according_to_its_specification(colour, depth, interlaced, keyed):
    """keyed: with a tRNS chunk."""
    rng = np.random.default_rng(depth)
    samples = rng.integers(0, 2**depth, (11, 13, SAMPLES[colour]))
    palette, opacity = rng.integers(0, 256, (2**depth, 3)), rng.integers(0, 256, 2**depth)
    extra, key = b"", None
    if colour == PALETTE:
        extra = chunk(b"PLTE", palette.astype(np.uint8).tobytes())
        opacity = opacity if keyed else np.full(2**depth, 255)
        extra += chunk(b"tRNS", opacity.astype(np.uint8).tobytes()) if keyed else b""
    elif keyed:
        key = samples[3, 4]
        samples[5] = key
        samples[6] = key
        samples[6, :, -1] ^= 1  # differs in the last bit
        extra = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    expected = meaning(samples, colour, depth, key, palette, opacity)
    found = rgb(png(samples, colour, depth, interlaced=interlaced, extra=extra))
    assert np.abs(found - expected).max() <= 1.5  # colour, opacity and their product are rounded


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
@pytest.mark.parametrize("photometric", [0, 1])
def test_a_grey_tiff_is_read_correctly_or_refused(order, bits, photometric):
    samples = np.random.default_rng(bits).integers(0, 2**bits, (6, 16, 1))
    stored = samples.astype(f"{order}u2") if bits == 16 else samples
    scaled = samples * 255 / (2**bits - 1)
    try:
        found = rgb(tiff(stored, bits=bits, photometric=photometric, order=order))
    except OSError:
        assert bits > 8 and (order, photometric) != ("<", 1)  # which Pillow does not read
        return
    assert np.abs(found - (scaled if photometric else 255 - scaled)).max() <= 0.51


@pytest.mark.parametrize("order", "<>")
def test_a_colour_tiff_is_read_correctly(order):
    samples = np.random.default_rng(0).integers(0, 65536, (6, 7, 3)).astype(f"{order}u2")
    assert np.abs(rgb(tiff(samples, bits=16, photometric=2, order=order)) - samples / 257).max() <= 1.01
    four = np.random.default_rng(0).integers(0, 256, (6, 7, 4))
    ink = (1 - four[..., :3] / 255) * (1 - four[..., 3:] / 255) * 255
    assert np.abs(rgb(tiff(four, bits=8, photometric=5, order=order)) - ink).max() <= 1.01
    alpha = four[..., 3:] / 255
    laid = alpha * four[..., :3] + (1 - alpha) * 255
    assert np.abs(rgb(tiff(four, bits=8, photometric=2, order=order, t338=[2])) - laid).max() <= 1.01
    multiplied = np.minimum(four[..., :3], four[..., 3:])
    associated = np.concatenate([multiplied, four[..., 3:]], axis=-1)
    found = rgb(tiff(associated, bits=8, photometric=2, order=order, t338=[1]))
    assert np.abs(found - (multiplied + 255 - four[..., 3:])).max() <= 2.01


@pytest.mark.parametrize(("dtype", "sample_format"), [("f4", 3), ("i4", 2), ("u4", 1), ("i2", 2), ("i1", 2)])
def test_samples_of_unknown_range_are_refused(dtype, sample_format):
    samples = np.ones((8, 8, 1), f"<{dtype}")
    bits = 8 * samples.dtype.itemsize
    with pytest.raises(ValueError, match="black and white are unknown"):
        decode_image(
            tiff(samples.astype(np.uint8) if bits == 8 else samples, bits=bits, photometric=1, t339=[sample_format])
        )


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_lossless_formats_are_read_exactly(kind, mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 10, 3), np.uint8)).quantize(200)
    image = image if mode == "P" else image.convert("RGB").convert(mode)
    found = rgb(encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert np.array_equal(found, np.asarray(image.convert("RGB")))


def turned(pixels, orientation):
    """How an image is shown: the orientation says where row 0 and column 0 of `pixels` are (EXIF 2.3, 4.6.4)."""
    shown = pixels.swapaxes(0, 1) if orientation >= 5 else pixels
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return shown[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(10))
def test_only_defined_orientations_rotate_images(kind, orientation):
    pixels = np.kron(np.arange(0, 240, 40).reshape(2, 3), np.ones((8, 8))).astype(np.uint8)[..., None].repeat(3, axis=2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    image, notes = decode_image(encoded(Image.fromarray(pixels), kind, exif=exif, **options))
    defined = 2 <= orientation <= 8
    assert notes == ["turned as EXIF says"] * defined
    shown = turned(pixels, orientation) if defined else pixels
    assert image.size == shown.shape[1::-1]
    assert np.abs(np.asarray(image).astype(int) - shown).max() <= 2 * (kind == "JPEG")


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_avif_is_read_and_rotated(orientation):
    pixels = np.kron(np.arange(0, 240, 40).reshape(2, 3), np.ones((16, 16))).astype(np.uint8)[..., None].repeat(3, 2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image, _ = decode_image(encoded(Image.fromarray(pixels), "AVIF", exif=exif, quality=100))
    assert np.abs(np.asarray(image).astype(int) - turned(pixels, orientation)).max() <= 4


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_used_and_counted(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (rgb(data) == (255, 0, 0)).all()
    assert "of several frames or pages, the first taken" in decode_image(data)[1]


def test_transparent_pixels_of_a_gif_are_white():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.paste(0, (0, 0, 4, 8))
    found = rgb(encoded(image, "GIF", transparency=1))
    assert (found[:, :4] == (10, 20, 30)).all() and (found[:, 4:] == 255).all()


def test_pixels_outside_the_first_frame_of_a_gif_are_white():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    data = bytearray(encoded(image, "GIF"))
    struct.pack_into("<HH", data, 6, 8, 9)  # the canvas
    struct.pack_into("<HH", data, data.index(b",", 13) + 1, 2, 3)  # the frame's place in it
    expected = np.full((9, 8, 3), 255)
    expected[3:7, 2:6] = (40, 50, 60)
    assert np.array_equal(rgb(bytes(data)), expected)


def bmp(body, bits, masks=(), palette=b"", top_down=False):
    """A BMP of 4×4 pixels, by rows from below unless top_down; with masks of R, G, B and perhaps alpha."""
    size = 108 if len(masks) == 4 else 40
    header = struct.pack(
        "<IiiHHIIiiII", size, 4, -4 if top_down else 4, 1, bits, 3 if masks else 0, len(body), 0, 0, 0, 0
    )
    header += struct.pack(f"<{len(masks)}I", *masks) + (b"BGRs" + bytes(48) if size == 108 else b"") + palette
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(body), 0, 0, 14 + len(header)) + header + body


def test_a_bmp_is_read_correctly():
    rng = np.random.default_rng(0)
    five = rng.integers(0, 32, (4, 4, 3))
    words = (five[..., 0] << 10 | five[..., 1] << 5 | five[..., 2]).astype("<u2")
    for data in (bmp(words[::-1].tobytes(), 16), bmp(words.tobytes(), 16, top_down=True)):
        assert np.abs(rgb(data) - five * 255 / 31).max() <= 1
    words = (five[..., 0] << 11 | five[..., 1] << 6 | five[..., 2]).astype("<u2")
    found = rgb(bmp(words[::-1].tobytes(), 16, masks=(0xF800, 0x7E0, 0x1F)))
    assert np.abs(found - five * [255 / 31, 2 * 255 / 63, 255 / 31]).max() <= 1
    four = rng.integers(0, 256, (4, 4, 4), np.uint8)
    colours, alpha = four[..., 2::-1], four[..., 3:] / 255
    assert np.array_equal(rgb(bmp(four[::-1].tobytes(), 32)), colours)  # the fourth is not defined
    found = rgb(bmp(four[::-1].tobytes(), 32, masks=(0xFF0000, 0xFF00, 0xFF, 0xFF000000)))
    assert np.abs(found - (alpha * colours + (1 - alpha) * 255)).max() <= 1
    found = rgb(
        bmp(four[::-1, :, 0].tobytes(), 8, palette=(palette := rng.integers(0, 256, (256, 4), np.uint8)).tobytes())
    )
    assert np.array_equal(found, palette[four[..., 0]][..., 2::-1])


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("levels", [[0], [0, 255], [0, 1, 2, 3], list(range(16)), [255, 0]])
def test_a_bmp_with_a_grey_palette_is_read_correctly(bits, levels):
    levels = levels[: 2**bits]
    index = np.random.default_rng(0).integers(0, len(levels), (4, 4, 1))
    rows = b"".join(packed(row.ravel(), bits).ljust(4, b"\0") for row in index[::-1])
    palette = b"".join(bytes([level] * 3 + [0]) for level in levels)
    data = bytearray(bmp(rows, bits, palette=palette))
    struct.pack_into("<I", data, 46, len(levels))  # of the palette
    assert np.array_equal(rgb(bytes(data)), np.array(levels)[index].repeat(3, axis=-1))


PLANES = {"CMYK": (4, 5, {}), "RGB": (3, 2, {}), "RGBA": (4, 2, {"t338": [2]}), "LA": (2, 1, {"t338": [2]})}


@pytest.mark.parametrize("kind", PLANES)
@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_in_separate_planes_is_read_correctly_or_refused(kind, bits):
    count, photometric, extra = PLANES[kind]
    samples = np.random.default_rng(0).integers(0, 2**bits, (6, 5, count)).astype(f"<u{bits // 8}")
    size = samples[..., 0].nbytes
    places = {"t273": [8 + size * plane for plane in range(count)], "t279": [size] * count}
    planes = np.ascontiguousarray(np.moveaxis(samples, -1, 0)).reshape(samples.shape)
    data = tiff(planes, bits=bits, photometric=photometric, t284=[2], **places, **extra)
    if bits == 16 or kind == "LA":  # Pillow mixes their planes up
        with pytest.raises((ValueError, OSError)):
            decode_image(data)
    else:
        assert np.array_equal(rgb(data), rgb(tiff(samples, bits=bits, photometric=photometric, **extra)))


def jpeg_of_inks(transform):
    """(JPEG of four components with Adobe's marker, its colours if they are inks, inverted as Adobe has them)"""
    inks = np.kron(np.random.default_rng(0).integers(60, 200, (2, 2, 4)), np.ones((8, 8, 1))).astype(np.uint8)
    data = bytearray(encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=100, subsampling=0))
    data[data.index(b"Adobe") + 11] = transform
    return bytes(data), 255 - inks.astype(float)


@pytest.mark.filterwarnings("ignore:.*mode.*:DeprecationWarning")
def test_inverted_cmyk_of_adobe_is_read_correctly():
    data, stored = jpeg_of_inks(transform=0)
    assert np.abs(rgb(data) - stored[..., :3] * stored[..., 3:] / 255).max() <= 4
    data, stored = jpeg_of_inks(transform=2)  # YCCK: three of the components are luma and chroma of the inks
    luma, blue, red, black = np.moveaxis(stored, -1, 0)
    colours = [luma + 1.402 * (red - 128), luma - 0.344136 * (blue - 128) - 0.714136 * (red - 128)]
    colours = np.stack([*colours, luma + 1.772 * (blue - 128)], axis=-1).clip(0, 255)
    assert np.abs(rgb(data) - (255 - colours) * black[..., None] / 255).max() <= 5


def matrix_profile(gamma, swapped):
    """An ICC profile with the primaries of sRGB, red and green exchanged if `swapped`, and a gamma."""
    srgb = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    places = {
        srgb[132 + 12 * i : 136 + 12 * i].decode(): 132 + 12 * i for i in range(struct.unpack_from(">I", srgb, 128)[0])
    }
    if swapped:
        a, b = places["rXYZ"] + 4, places["gXYZ"] + 4
        srgb[a : a + 8], srgb[b : b + 8] = srgb[b : b + 8], srgb[a : a + 8]
    if gamma:
        curve = b"curv" + bytes(4) + struct.pack(">IHxx", 1, round(gamma * 256))
        for name in ("rTRC", "gTRC", "bTRC"):
            srgb[places[name] + 4 : places[name] + 12] = struct.pack(">II", len(srgb), 14)
        srgb += curve
        srgb[:4] = struct.pack(">I", len(srgb))
    return bytes(srgb)


COLOUR = (200, 100, 50)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_colours_of_another_profile_become_srgb(kind):
    image, options = Image.new("RGB", (16, 16), COLOUR), {"lossless": True} if kind == "WEBP" else {}
    found, notes = decode_image(encoded(image, kind, icc_profile=matrix_profile(None, True), **options))
    assert np.abs(np.asarray(found).astype(int) - (100, 200, 50)).max() <= 3
    assert notes == ["with an ICC profile, made sRGB"]
    found, notes = decode_image(encoded(image, kind, icc_profile=matrix_profile(1.0, False), **options))
    light = np.array(COLOUR) / 255
    expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(np.asarray(found) - expected).max() <= 3


@pytest.mark.parametrize(("mode", "colour"), [("RGB", COLOUR), ("L", 100)])
@pytest.mark.parametrize(("profile", "note"), [(matrix_profile(None, False), []), (b"no profile", ["ignored"])])
def test_a_profile_that_is_srgb_or_damaged_does_not_change_pixels(profile, note, mode, colour):
    found, notes = decode_image(encoded(Image.new(mode, (8, 8), colour), "PNG", icc_profile=profile))
    assert (np.asarray(found) == colour).all()
    assert [said.rpartition(" ")[2] for said in notes] == note


def test_grey_of_another_profile_becomes_srgb():
    found, notes = decode_image(encoded(Image.new("L", (8, 8), 100), "PNG", icc_profile=matrix_profile(1.0, False)))
    assert found.mode == "L" and notes == ["with an ICC profile, made sRGB"]
    assert np.abs(np.asarray(found) - 255 * (1.055 * (100 / 255) ** (1 / 2.4) - 0.055)).max() <= 3


DAMAGED = {
    "nothing": b"",
    "text": b"hello",
    "half a JPEG": encoded(Image.new("RGB", (64, 64)), "JPEG")[:200],
    "half a GIF": encoded(Image.effect_noise((64, 64), 90), "GIF")[:400],
    "half a TIFF": encoded(Image.effect_noise((64, 64), 90), "TIFF")[:400],
    "no palette": png(np.zeros((4, 4, 1), int), PALETTE, 8),
    "too large": b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(b""))
    + chunk(b"IEND", b""),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_the_reason_why_a_file_cannot_be_read_is_reproducible(name):
    reasons = set()
    for _ in range(2):
        with pytest.raises(Exception) as raised:  # noqa: PT011  decoders raise what they like
            decode_image(DAMAGED[name])
        reasons.add(reason_of(raised.value))
    (reason,) = reasons
    assert reason and "0x" not in reason and "Error" not in reason
