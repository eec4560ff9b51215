"""Encoded images of any kind and size → uint8 [size, size, C]."""

import dataclasses
import io

import numpy as np
from PIL import Image, ImageOps

from cfgjax.errors import UsageError, choose

FORMATS = ("JPEG", "PNG", "WEBP")
ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
Resampling = Image.Resampling


def adm(image, size):
    """The crop of openai/guided-diffusion: halved by boxes while twice too large, bicubic, then the centre."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def lanczos(image, size):
    """The largest square of the centre, resized by Lanczos' window."""
    return central_square(image).resize((size, size), Resampling.LANCZOS)


def area(image, size):
    """The largest square of the centre, averaged over areas (a box filter)."""
    return central_square(image).resize((size, size), Resampling.BOX)


def pad(image, size):
    """The image itself in the middle of black. Raises ValueError where it is larger."""
    if max(image.size) > size:
        raise ValueError(f"is {image.width}×{image.height}, larger than the {size}×{size} it is to be padded to")
    padded = Image.new(image.mode, (size, size))
    padded.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return padded


def central_square(image):
    """The largest square in the middle of an image."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


CROPS = {"adm": adm, "lanczos": lanczos, "area": area, "pad": pad}


@dataclasses.dataclass(frozen=True)
class Converter:
    """(encoded bytes, or uint8 [H, W, 1 or 3]) → (uint8 [size, size, channels], what had to be converted, in words)."""

    size: int
    crop: str
    channels: int

    def __post_init__(self):
        choose("crop", self.crop, CROPS)
        if self.size < 1:
            raise UsageError(f"size is {self.size}; need at least 1")
        if self.channels not in (1, 3):
            raise UsageError(f"channels is {self.channels}; need 1 (grey) or 3 (RGB)")

    def __call__(self, data):
        if isinstance(data, np.ndarray):
            image, notes = Image.fromarray(data[..., 0] if data.shape[-1] == 1 else data), []
        else:
            image, notes = decode(data)
        if self.crop != "pad" and min(image.size) < self.size:
            notes.append(f"smaller than {self.size} pixels, enlarged")
        mode = "L" if self.channels == 1 else "RGB"
        if image.mode != mode:
            notes.append("grey, made RGB" if mode == "RGB" else "in colour, made grey")
            image = image.convert(mode)
        cropped = np.asarray(CROPS[self.crop](image, self.size))
        return cropped.reshape(self.size, self.size, self.channels), notes


def decode(data):
    """(upright Pillow image of mode RGB or L, [what had to be converted, in words]) of an encoded image."""
    image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    notes = []
    image.load()
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
        notes.append("turned as EXIF says")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        notes.append("with transparency, laid on white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"), notes
    if image.mode.startswith("I"):
        notes.append("of 16 bits, made 8")
        return Image.fromarray(np.rint(np.asarray(image) / 257).clip(0, 255).astype(np.uint8)), notes
    if image.mode in ("1", "L"):
        return image.convert("L"), notes
    if image.mode != "RGB":
        notes.append({"P": "with a palette, made RGB"}.get(image.mode, f"{image.mode}, made RGB"))
    return image.convert("RGB"), notes
