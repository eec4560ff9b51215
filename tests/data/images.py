"""Folders of images for the tests of data sets."""

import numpy as np
from PIL import Image


def write_folder(root, classes=("ant", "bee", "cat"), count=4, size=(12, 10), ending="png"):
    """class/part/i.png of noise below root: count images of each class. Returns root."""
    rng = np.random.default_rng(0)
    for name in classes:
        for i in range(count):
            path = root / name / f"part{i % 2}" / f"{i}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)
    return root


def write_npz(path, count=64, shape=(8, 8, 3), classes=4, **more):
    """An .npz of random images, its classes in turn. Returns (image, label)."""
    image = np.random.default_rng(1).integers(0, 256, (count, *shape), np.uint8)
    label = np.arange(count) % classes
    np.savez(path, image=image, label=label, **more)
    return image, label
