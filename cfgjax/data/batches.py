"""Batch i as a pure function of (seed, i), so that a resumed run needs only its step."""

import functools
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int, Int64, Shaped, UInt8
from numpy.typing import ArrayLike
from PIL import Image

from cfgjax.data.dataset import Dataset

Batch = dict[str, Shaped[np.ndarray, "_rows ..."]]  # "image", "label", conditions, and for an upsampler "low_res"
FLIP, SHUFFLE, CROP = 1, 2, 3  # distinct streams of random numbers


def batch_at(
    dataset: Dataset, seed: int, step: int, batch_size: int, rows: Int[np.ndarray, " b"] | None = None
) -> Batch:
    """Returns batch `step` of training, {"image": float32 [B, …] in [−1, 1], "label": int32 [B]}, or some rows of it.

    rows: the requested rows in any order, by default all. With low_res_size, the batch also has "low_res" [B, h, w, C],
    the means of the image over squares.

    Each epoch is a permutation of the data set, drawn from (seed, epoch). Batches continue across epochs, so that no
    example is dropped at their ends. A row does not depend on which other rows are requested.
    """
    rows = np.arange(batch_size) if rows is None else rows
    return finished_batch(drawn(dataset, seed, step, batch_size, rows), dataset.low_res_size)


def drawn(dataset: Dataset, seed: int, step: int, batch_size: int, rows: Int[np.ndarray, " b"]) -> Batch:
    """Returns what worker processes compute of `batch_at`: without "low_res", with images as the data set has them."""
    epoch, place = np.divmod(step * batch_size + rows, len(dataset))
    index = np.empty(len(place), np.int64)
    for e in np.unique(epoch):
        index[epoch == e] = permutation(len(dataset), seed, int(e))[place[epoch == e]]
    image = dataset.images(index)
    draws = lambda stream, *shape: np.random.default_rng((seed, step, stream)).random((batch_size, *shape))[rows]
    if dataset.random_flip:
        image = np.where(draws(FLIP)[:, None, None, None] < 0.5, image[:, :, ::-1], image)
    if dataset.random_crop < 1:
        parts = map(functools.partial(crop, dataset.random_crop), to_float(image), draws(CROP, 3))
        image = np.stack(list(parts))
    conditions = {name: array[index] for name, array in dataset.conditions.items()}
    return {"image": image, "label": dataset.label[index], **conditions}


def finished_batch(drawn: Batch, low_res_size: int | None) -> Batch:
    """Returns `batch_at` from the result of `drawn`."""
    batch = {**drawn, "image": to_float(drawn["image"])}
    if low_res_size is not None:
        batch["low_res"] = squares_averaged(batch["image"], batch["image"].shape[1] // low_res_size)
    return batch


def crop(
    least: float, image: Float32[np.ndarray, "height width channels"], draws: Float[np.ndarray, "3"]
) -> Float32[np.ndarray, "height width channels"]:
    """Returns a random part of image, resized to the image's size. Its sides are between `least` and 1 of the image's.

    draws: three numbers in [0, 1), for the size and position of the part.
    """
    height, width = image.shape[:2]
    share = least + (1 - least) * draws[0]
    left, top = draws[1] * (1 - share) * width, draws[2] * (1 - share) * height
    box = (left, top, left + share * width, top + share * height)
    channels = [Image.fromarray(np.ascontiguousarray(image[..., c])) for c in range(image.shape[2])]
    resized = [np.asarray(channel.resize((width, height), Image.Resampling.BILINEAR, box)) for channel in channels]
    return np.stack(resized, axis=-1)


def squares_averaged(
    image: Float[np.ndarray, "batch height width channels"], factor: int
) -> Float32[np.ndarray, "batch low_height low_width channels"]:
    """Returns the means of image over squares of factor × factor pixels."""
    batch, height, width, channels = image.shape
    squares = image.reshape(batch, height // factor, factor, width // factor, factor, channels)
    return squares.mean(axis=(2, 4), dtype=np.float32)


@functools.lru_cache(maxsize=2)
def permutation(length: int, seed: int, epoch: int) -> Int64[np.ndarray, " length"]:
    """Returns the order of examples in an epoch, a permutation of range(length)."""
    return np.random.default_rng((seed, epoch, SHUFFLE)).permutation(length)


def to_float(image: Shaped[Any, "*shape"]) -> Shaped[Any, "*shape"]:
    """Returns uint8 images in 0 … 255 as float32 in [−1, 1], and float32 images unchanged."""
    return image.astype(np.float32) / 127.5 - 1 if image.dtype == np.uint8 else image


def to_uint8(image: ArrayLike) -> UInt8[np.ndarray, "..."]:
    """Returns images in [−1, 1] as uint8 in 0 … 255, clipped and rounded to nearest."""
    return np.clip(np.rint((np.asarray(image) + 1) * 127.5), 0, 255).astype(np.uint8)


def quantised(image: Shaped[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Returns float images in [−1, 1] or uint8 images as uint8, the form in which data and samples are measured."""
    return to_uint8(to_float(image))
