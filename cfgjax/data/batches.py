"""Batch i as a pure function of (seed, i): a resumed run needs to know its step and nothing else."""

import functools

import numpy as np
from PIL import Image


def batch_at(dataset, seed, step, batch_size, rows=None):
    """Batch `step` of training: {"image": float32 [B, …] in [−1, 1], "label": int32 [B]}, or some rows of it.

    rows: int [b], those wanted, in any order; all by default. With low_res_size also "low_res" [B, h, w, C], the image
    averaged over squares.

    Each epoch is a permutation of the data set, drawn from (seed, epoch); the batches run through the epochs without
    a gap, so that no example is dropped at their ends. A row is the same whatever others are asked for with it.
    """
    rows = np.arange(batch_size) if rows is None else rows
    epoch, place = np.divmod(step * batch_size + rows, len(dataset))
    index = np.empty(len(place), np.int64)
    for e in np.unique(epoch):
        index[epoch == e] = permutation(len(dataset), seed, int(e))[place[epoch == e]]
    image = to_float(dataset.image[index])
    draws = lambda stream, *shape: np.random.default_rng((seed, step, stream)).random((batch_size, *shape))[rows]
    if dataset.random_flip:
        image = np.where(draws(FLIP)[:, None, None, None] < 0.5, image[:, :, ::-1], image)
    if dataset.random_crop < 1:
        image = np.stack(list(map(functools.partial(crop, dataset.random_crop), image, draws(CROP, 3))))
    batch = {"image": image, "label": dataset.label[index]}
    if dataset.low_res_size is not None:
        batch["low_res"] = squares_averaged(image, image.shape[1] // dataset.low_res_size)
    return batch


FLIP, SHUFFLE, CROP = 1, 2, 3  # distinct streams of random numbers


def crop(least, image, draws):
    """A random part of image [H, W, C], its sides between `least` and all of its own, brought back to its size.

    draws: three numbers in [0, 1), of the part's size and place.
    """
    height, width = image.shape[:2]
    share = least + (1 - least) * draws[0]
    left, top = draws[1] * (1 - share) * width, draws[2] * (1 - share) * height
    box = (left, top, left + share * width, top + share * height)
    channels = [Image.fromarray(np.ascontiguousarray(image[..., c])) for c in range(image.shape[2])]
    resized = [np.asarray(channel.resize((width, height), Image.Resampling.BILINEAR, box)) for channel in channels]
    return np.stack(resized, axis=-1)


def squares_averaged(image, factor):
    """Means over squares of factor × factor pixels of image [B, H, W, C], [B, H/factor, W/factor, C]."""
    batch, height, width, channels = image.shape
    squares = image.reshape(batch, height // factor, factor, width // factor, factor, channels)
    return squares.mean(axis=(2, 4), dtype=np.float32)


@functools.lru_cache(maxsize=2)
def permutation(length, seed, epoch):
    """The order of epoch `epoch`: a permutation of range(length)."""
    return np.random.default_rng((seed, epoch, SHUFFLE)).permutation(length)


def to_float(image):
    """uint8 0 … 255 → float32 in [−1, 1]; float32 unchanged."""
    return image.astype(np.float32) / 127.5 - 1 if image.dtype == np.uint8 else image


def to_uint8(image):
    """float [−1, 1] → uint8 0 … 255, clipped and rounded to nearest."""
    return np.clip(np.rint((np.asarray(image) + 1) * 127.5), 0, 255).astype(np.uint8)


def quantised(image):
    """float [−1, 1] or uint8 → uint8: what is measured, of data as of samples."""
    return to_uint8(to_float(image))
