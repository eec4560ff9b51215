"""Checks of what users pass to samplers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from numpy.typing import ArrayLike

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.guidance import scale_to_weight
from cfgjax.diffusion.schedules import MAX_STEPS
from cfgjax.models.class_names import label_of


def check_whole_number(name: str, value: Any, least: int, most: int = 2**32 - 1) -> None:
    """Raises UsageError unless value is an integer from least to most, both included."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not least <= value <= most:
        raise UsageError(f"{name} is {value!r}; need an integer of at least {least} and at most {most}")


def check_num_steps(value: Any) -> None:
    """Raises UsageError unless value can be the number of levels of a sampling grid."""
    check_whole_number("num_steps", value, 2, MAX_STEPS)


def is_number(value: Any) -> bool:
    """Returns whether value is one real number: no boolean, no string."""
    return np.ndim(value) == 0 and np.asarray(value).dtype.kind in "iuf"


def label_array(labels: Any, classes: Sequence[str] | None = None) -> Shaped[np.ndarray, "..."]:
    """Returns labels, ints or names of classes, as an array. The values of ints are not checked."""
    try:
        found = np.array(labels, ndmin=1)
    except ValueError:  # lists of different lengths
        raise UsageError("labels are lists of different lengths; need integers [N]") from None
    return np.array([label_of(word, classes) for word in found]) if found.dtype.kind == "U" else found


def guidance_weights(guidance: Any, scale: Any, length: int) -> Float[np.ndarray, " length"]:
    """Returns w for each of `length` labels, from w or from s = 1 + w, a number or one per label; 0 by default."""
    if guidance is not None and scale is not None:
        raise UsageError(f"guidance (w) {guidance} and scale (s = 1 + w) {scale} are both given; give one")
    if scale is not None:
        return np.asarray(scale_to_weight(per_label("scale", scale, length)))
    return per_label("guidance", 0.0 if guidance is None else guidance, length)


def per_label(name: str, value: Any, length: int) -> Float[np.ndarray, " length"]:
    """Returns a finite number for each of `length` labels, float32. value: a number or one per label."""
    try:
        values = np.asarray(value)
    except ValueError:  # lists of different lengths
        values = np.asarray(None)
    if values.dtype.kind not in "iuf":
        raise UsageError(f"{name} is {value!r}; need a number or one per label")
    if values.ndim and values.shape != (length,):
        raise UsageError(f"{name} has shape {values.shape} for {length} labels; give a number or one per label")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise UsageError(f"{name} is {value}; need numbers that are finite in float32")
    return np.broadcast_to(values, (length,)).astype(np.float32)


def noise_array(z: ArrayLike, shape: Sequence[int]) -> Float[np.ndarray, "n ..."]:
    """Returns z, the noise at a sampler's first level, as float32. Raises UsageError unless it fits and is finite."""
    found = np.asarray(z)
    if found.dtype.kind not in "iuf" or found.shape != tuple(shape):
        raise UsageError(f"z has dtype {found.dtype} and shape {found.shape}; need numbers of shape {tuple(shape)}")
    with np.errstate(over="ignore"):
        found = found.astype(np.float32)
    if not np.isfinite(found).all():
        raise UsageError("z has values that are not finite in float32; need noise N(0, I)")
    return found
