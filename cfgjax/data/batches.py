"""Batch i as a pure function of (seed, i): a resumed run needs to know its step and nothing else."""

import functools

import numpy as np


def batch_at(dataset, seed, step, batch_size, process=0, num_processes=1):
    """Batch `step` of training: {"image": float32 [B, …] in [−1, 1], "label": int32 [B]}, this process's slice.

    Each epoch is a permutation of the data set, drawn from (seed, epoch); the batches run through the epochs without
    a gap, so that no example is dropped at their ends. The global batch is the same for any num_processes, which
    must divide batch_size.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    local = slice(process * batch_size // num_processes, (process + 1) * batch_size // num_processes)
    epoch, place = np.divmod(positions[local], len(dataset))
    index = np.empty(len(place), np.int64)
    for e in np.unique(epoch):
        index[epoch == e] = permutation(len(dataset), seed, int(e))[place[epoch == e]]
    image = to_float(dataset.image[index])
    if dataset.random_flip:
        flip = np.random.default_rng((seed, step, FLIP)).random(batch_size)[local] < 0.5
        image = np.where(flip[:, None, None, None], image[:, :, ::-1], image)
    return {"image": image, "label": dataset.label[index]}


FLIP, SHUFFLE = 1, 2  # distinct streams of random numbers


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
