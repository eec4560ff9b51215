"""A model in one line."""

from collections.abc import Sequence
from pathlib import Path

from cfgjax.runs.settings import Settings


def describe_model(settings: Settings, step: int | None, ema: float | None) -> str:
    """Returns network, data, step and EMA, such as "unet, digits 8×8×1, 10 classes, step 600, ema 0.999".

    step: of the checkpoint, or None. ema: rate or width of the average; 0 without averaging, None if unknown.
    """
    data = settings.data
    source = data.source if data.options.get("path") is None else f"{data.source} {Path(data.options['path']).name}"
    words = [settings.model.name, f"{source} {size_text(data.image_shape)}", f"{data.num_classes} classes"]
    if step is not None:
        words.append(f"step {step}")
    if ema is not None:
        name = "ema width" if settings.ema.is_width(ema) else "ema"
        words.append(f"{name} {ema:g}" if ema else "no ema")
    return ", ".join(words)


def size_text(image_shape: Sequence[int]) -> str:
    """Returns "8×8×1" of an image, and "2-d" of points in two dimensions."""
    return "×".join(map(str, image_shape)) if len(image_shape) > 1 else f"{image_shape[0]}-d"
