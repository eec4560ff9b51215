"""Converts colours to sRGB by ICC profiles."""

import functools
import io

import numpy as np
from PIL import Image

SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
INVISIBLE = 3  # of 255 levels: a profile that differs from sRGB by no more is not applied


def to_srgb(image, profile):
    """Returns (image of mode L or RGB in sRGB, [notes on what was done]) for an image of mode L, RGB or CMYK.

    profile: bytes of its embedded ICC profile. A profile of sRGB itself has no effect. A profile that cannot be applied
    is ignored and noted. A grey image with an RGB profile is read as equal parts of red, green and blue.
    """
    try:
        source = image.convert("RGB") if image.mode == "L" and space_of(profile) == "RGB" else image
        transform = transform_of(profile, source.mode)
    except Exception:  # the exceptions for a damaged profile are not documented
        return image, ["with an ICC profile that cannot be applied, ignored"]
    if transform is None:
        return image, []
    converted = transform.apply(source)
    return converted.convert("L") if image.mode == "L" else converted, ["with an ICC profile, made sRGB"]


def space_of(profile):
    """Returns the colour space of an ICC profile: RGB, GRAY, CMYK or another."""
    return profile[16:20].decode("ascii").strip()


@functools.lru_cache(maxsize=32)
def transform_of(profile, mode):
    """Returns the transform from an ICC profile to sRGB, or None if it changes nothing visibly.

    Raises ValueError, or an exception of littleCMS, if there is no such transform.
    """
    from PIL import ImageCms

    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if space_of(profile) != SPACES[mode]:
        raise ValueError("the profile is of another colour space than the image")
    srgb = ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(source, srgb, mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)
    if mode == "CMYK":
        return transform
    levels = np.linspace(0, 255, 18).astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(18, -1, 3)
    probe = Image.fromarray(grid if mode == "RGB" else np.ascontiguousarray(grid[..., 0]))
    change = np.asarray(transform.apply(probe)).astype(int) - np.asarray(probe.convert("RGB"))
    return None if np.abs(change).max() <= INVISIBLE else transform
