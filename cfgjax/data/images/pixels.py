"""Decodes image files to Pillow images: 8 bits, upright, opaque, mode RGB or L, in sRGB."""

import functools
import io
import re
import warnings
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image, UnidentifiedImageError

from cfgjax.base.errors import printable
from cfgjax.data.images.colour import to_srgb

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BITS, COMPRESSION, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT, SUBSAMPLING = 258, 259, 262, 284, 339, 530  # tags of TIFF
MIN_IS_WHITE, YCBCR, UNCOMPRESSED, SEPARATE, UNSIGNED = 0, 6, 1, 2, 1  # values of these tags
NO_RANGE = "its samples are signed, floating-point or 32 bits, whose black and white are unknown; need 8 or 16 bits"
GREY_ALPHA = 4  # colour type of PNG
OBJECT = re.compile(r"<[^<>]* object at 0x[0-9a-fA-F]+>")


def decode_image(data: bytes) -> tuple[Image.Image, list[str]]:
    """Returns (upright Pillow image of mode RGB or L, [notes on conversions]) of an encoded image.

    Raises what the decoder raises; `reason_of` turns it into text.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged metadata, and of large images below the limit
        return _decode(data)


def reason_of(error: BaseException) -> str:
    """Returns the reason why an image cannot be decoded, on one line. It depends on the file's content alone."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is not an image of {', '.join(formats())}, or a kind that cannot be read"
    if isinstance(error, MemoryError):
        return "it needs more memory than is available"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return printable(" ".join(OBJECT.sub("the file", text).split()))[:200] or type(error).__name__


@functools.cache
def formats() -> tuple[str, ...]:
    """Returns the IMAGE_FORMATS that this Pillow reads."""
    Image.init()
    return tuple(name for name in IMAGE_FORMATS if name in Image.OPEN)


def _decode(data: bytes) -> tuple[Image.Image, list[str]]:
    notes = []
    opened = Image.open(io.BytesIO(data), formats=formats())
    image: Image.Image = opened
    if min(image.size) < 1:
        raise ValueError("it has no pixels")
    check_samples(image)
    if image.format == "BMP":
        image = with_palette(image, data)
    if getattr(image, "n_frames", 1) > 1:
        notes.append("of several frames or pages, the first taken")
    turned = image.format == "TIFF" and turn_of(image) is not None  # Pillow turns it on loading
    inverted = tags_of(image).get(PHOTOMETRIC) == MIN_IS_WHITE
    bits, frame = stored_bits(image, data), opened.tile[0].extents if opened.format == "GIF" and opened.tile else None
    image.load()
    if image.mode == "P" and image.palette is None:
        raise ValueError("it has no palette")
    turn = None if image.format == "TIFF" else turn_of(image)
    profile = image.info.get("icc_profile")
    if turned or turn is not None:
        notes.append("turned as EXIF says")
    alpha = None
    if bits > 8:
        notes.append(f"of {bits} bits, made 8")
    if bits == 16 and image.format == "PNG" and image.mode in ("RGB", "RGBA"):
        image, alpha = rounded_to_8_bits(image, sixteen_bits(image, data))
    if alpha is None:
        alpha = alpha_of(image, bits)
    if frame not in (None, (0, 0, *image.size)):
        alpha = within(frame, alpha, image.size)
    colour = opaque(image, bits, inverted)
    if image.mode in ("P", "PA"):
        notes.append("with a palette, made RGB")
    elif colour.mode not in ("L", "RGB"):
        notes.append(f"{colour.mode}, made RGB")
    if colour.mode not in ("L", "RGB", "CMYK"):
        colour = colour.convert("RGB")
    if profile:
        colour, said = to_srgb(colour, profile)
        notes += said
    if colour.mode == "CMYK":
        colour = colour.convert("RGB")
    if alpha is not None:
        notes.append("with transparency, laid on white")
        colour = on_white(colour, alpha)
    return colour if turn is None else colour.transpose(turn), notes


def check_samples(image: Image.Image) -> None:
    """Raises ValueError for a TIFF whose samples Pillow would misread, or whose range is unknown."""
    tags = tags_of(image)
    formats = tags.get(SAMPLE_FORMAT, (UNSIGNED,))
    signed = set(formats if isinstance(formats, tuple) else (formats,)) != {UNSIGNED}
    if signed or image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise ValueError(NO_RANGE)
    uncompressed = tags.get(COMPRESSION, UNCOMPRESSED) == UNCOMPRESSED
    if tags.get(PHOTOMETRIC) == YCBCR and uncompressed and tags.get(SUBSAMPLING, (2, 2)) != (1, 1):
        raise ValueError("uncompressed YCbCr TIFFs with subsampled colours cannot be read")
    bits = tags.get(BITS, 1)
    in_planes = tags.get(PLANAR) == SEPARATE and isinstance(bits, tuple) and len(bits) > 1
    if in_planes and (image.mode in ("LA", "La") or (uncompressed and max(bits) > 8)):
        raise ValueError("TIFFs in separate planes cannot be read if they are grey with alpha or have 16 bits")


def with_palette(image: Image.Image, data: bytes) -> Image.Image:
    """Returns a BMP with its palette. Pillow drops a grey palette and reads the file as one of 1 or 8 bits."""
    header = int.from_bytes(data[14:18], "little")
    bits = data[24] if header == 12 else data[28]
    if bits == {"1": 1, "L": 8}.get(image.mode, bits):
        return image
    start = 14 + header
    again = Image.open(io.BytesIO(data[:start] + b"\xff" + data[start + 1 :]), formats=("BMP",))  # in part blue
    again.putpalette([0, 0, 0, *(again.getpalette() or [])[3:]])  # the first entry of what is dropped is black
    return again


def tags_of(image: Image.Image) -> Any:
    """Returns the tags of a TIFF, and {} for other images."""
    return getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}


def stored_bits(image: Image.Image, data: bytes) -> int:
    """Returns the bits per sample in the file."""
    if image.format == "PNG" and data[12:16] == b"IHDR":
        return data[24]
    if image.format == "TIFF":
        bits = tags_of(image).get(BITS, 1)
        return max(bits) if isinstance(bits, tuple) else bits
    return 8


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """Returns the transposition that EXIF requests; None for an upright image or an undefined orientation."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # damaged EXIF may raise anything
        return None
    return TURNS.get(orientation) if isinstance(orientation, int) else None


def opaque(image: Image.Image, bits: int, inverted: bool) -> Image.Image:
    """Returns the colours of an image without its transparency, in L, RGB, CMYK or a mode that Pillow makes RGB.

    bits: of a sample. inverted: whether 0 is white; Pillow handles that itself up to 8 bits only.
    """
    if image.mode.startswith("I"):
        most = 4095 if bits == 12 else 65535
        levels = np.asarray(image).astype(np.float64)
        levels = np.rint((most - levels if inverted else levels) * 255 / most)
        return Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    if image.mode in ("LA", "La", "1"):
        return image.convert("LA" if image.mode == "La" else "L").convert("L")
    if image.mode in ("RGBA", "RGBa", "P", "PA"):
        return Image.merge("RGB", image.convert("RGBA").split()[:3])
    return image


def alpha_of(image: Image.Image, bits: int) -> Image.Image | None:
    """Returns the opacity of each pixel as an image of mode L; None if the image has none.

    For a PNG without palette, Pillow returns the transparent colour (tRNS chunk) unscaled, in `bits` bits.
    """
    if image.mode == "La":
        return image.convert("LA").getchannel("A")
    key = image.info.get("transparency")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or (image.mode == "P" and image.has_transparency_data):
        return image.convert("RGBA").getchannel("A")
    if key is None or image.mode == "P":
        return None
    if image.format == "PNG" and image.mode != "1":
        most = 2**bits - 1
        key = (np.array(key) & most) * (255 if bits < 8 else most) // most
    return opaque_where(np.asarray(image.convert("L") if image.mode == "1" else image) != key)


def within(frame: tuple[int, int, int, int], alpha: Image.Image | None, size: tuple[int, int]) -> Image.Image:
    """Returns the opacity of an image that covers (left, top, right, bottom) of its canvas; the rest is transparent."""
    canvas = Image.new("L", size, 0)
    canvas.paste(255 if alpha is None else alpha.crop(frame), frame)
    return canvas


def opaque_where(differs: Bool[np.ndarray, "height width ..."]) -> Image.Image:
    """Returns the opacity of pixels: opaque if they differ from the transparent colour in any channel."""
    different = differs.any(axis=-1) if differs.ndim == 3 else differs
    return Image.fromarray(np.where(different, 255, 0).astype(np.uint8))


def sixteen_bits(image: Image.Image, data: bytes) -> Int[np.ndarray, "height width channels"]:
    """Returns the 16-bit samples of a loaded PNG in colour, or in grey with alpha, int [H, W, C].

    Pillow drops the lower bytes. They are read by decoding the file again under another raw mode.
    """
    again = Image.open(io.BytesIO(data), formats=("PNG",))
    grey = data[25] == GREY_ALPHA
    layout = "RGBA" if grey else f"{image.mode};16L"  # two bytes each as four samples; the lower bytes alone
    again.tile = [tile._replace(args=layout) for tile in again.tile]
    halves = np.asarray(again).astype(int)
    return halves[..., ::2] * 256 + halves[..., 1::2] if grey else np.asarray(image).astype(int) * 256 + halves


def rounded_to_8_bits(
    image: Image.Image, samples: Int[np.ndarray, "height width channels"]
) -> tuple[Image.Image, Image.Image | None]:
    """Returns (8-bit image, its opacity by the transparent colour or None) of a PNG's 16-bit samples."""
    key = image.info.get("transparency")
    alpha = None if key is None else opaque_where(samples != np.array(key))
    return Image.fromarray(np.rint(samples / 257).astype(np.uint8)), alpha


def on_white(colour: Image.Image, alpha: Image.Image) -> Image.Image:
    """Returns the colours on a white background, mode RGB."""
    over = colour.convert("RGB")
    over.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
