"""ICC profiles: colours to sRGB."""

import functools
import io

import numpy as np
from PIL import Image

SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
INVISIBLE = 3  # levels of 255 by which a profile may differ from sRGB and its pixels are left as they are


def to_srgb(image, profile):
    """Returns (image of mode L or RGB in sRGB, [what was done, in words]) of an image of mode L, RGB or CMYK.

    profile: bytes of its embedded ICC profile. One that is sRGB itself has no effect; one that cannot be applied is
    ignored, and the words say so. Grey with a profile of RGB is taken for equal parts of it.
    """
    try:
        source = image.convert("RGB") if image.mode == "L" and space_of(profile) == "RGB" else image
        transform = transform_of(profile, source.mode)
    except Exception:  # what littleCMS and Pillow raise for a damaged profile is not documented
        return image, ["with an ICC profile that cannot be applied, ignored"]
    if transform is None:
        return image, []
    converted = transform.apply(source)
    return converted.convert("L") if image.mode == "L" else converted, ["with an ICC profile, made sRGB"]


def space_of(profile):
    """The colour space of an ICC profile: RGB, GRAY, CMYK or another."""
    return profile[16:20].decode("ascii").strip()


@functools.lru_cache(maxsize=32)
def transform_of(profile, mode):
    """The transform of an ICC profile to sRGB, None if it makes no visible difference. Raises if there is none."""
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
