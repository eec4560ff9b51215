"""Converts encoded images of any kind and size to uint8 [size, size, C]."""

import dataclasses

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cfgjax.base.errors import UsageError, choose
from cfgjax.data.images.pixels import decode_image

Resampling = Image.Resampling
MAX_SCALED_PIXELS = 2**28


def adm(image: Image.Image, size: int) -> Image.Image:
    """Returns the crop of openai/guided-diffusion: halves by boxes while possible, bicubic resize, then the centre."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > MAX_SCALED_PIXELS:
        raise ValueError(f"is {image.width}×{image.height}, too long and narrow to scale its short side to {size}")
    image = image.resize((width, height), Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def lanczos(image: Image.Image, size: int) -> Image.Image:
    """Returns the largest central square, resized with a Lanczos filter."""
    return central_square(image).resize((size, size), Resampling.LANCZOS)


def area(image: Image.Image, size: int) -> Image.Image:
    """Returns the largest central square, resized with a box filter."""
    return central_square(image).resize((size, size), Resampling.BOX)


def pad(image: Image.Image, size: int) -> Image.Image:
    """Returns the image in the middle of a black square. Raises ValueError if it is larger."""
    if max(image.size) > size:
        raise ValueError(f"is {image.width}×{image.height}, larger than the padded size {size}×{size}")
    padded = Image.new(image.mode, (size, size))
    padded.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return padded


def central_square(image: Image.Image) -> Image.Image:
    """Returns the largest central square of an image."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


CROPS = {"adm": adm, "lanczos": lanczos, "area": area, "pad": pad}


@dataclasses.dataclass(frozen=True)
class Converter:
    """(encoded bytes, or uint8 [H, W, 1 or 3]) → (uint8 [size, size, channels], [notes on conversions])."""

    size: int
    crop: str
    channels: int

    def __post_init__(self) -> None:
        choose("crop", self.crop, CROPS)
        if self.size < 1:
            raise UsageError(f"size is {self.size}; need at least 1")
        if self.channels not in (1, 3):
            raise UsageError(f"channels is {self.channels}; need 1 (grey) or 3 (RGB)")

    def __call__(
        self, data: bytes | UInt8[np.ndarray, "height width channels"]
    ) -> tuple[UInt8[np.ndarray, "size size channels_out"], list[str]]:
        if isinstance(data, np.ndarray):
            image, notes = Image.fromarray(data[..., 0] if data.shape[-1] == 1 else data), list[str]()
        else:
            image, notes = decode_image(data)
        if self.crop != "pad" and min(image.size) < self.size:
            notes.append(f"smaller than {self.size} pixels, enlarged")
        mode = "L" if self.channels == 1 else "RGB"
        if image.mode != mode:
            notes.append("grey, made RGB" if mode == "RGB" else "in colour, made grey")
            image = image.convert(mode)
        cropped = np.asarray(CROPS[self.crop](image, self.size))
        return cropped.reshape(self.size, self.size, self.channels), notes
