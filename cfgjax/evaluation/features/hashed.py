"""Cached files of an evaluation, with a hash of their content. A file that does not match its hash is written again."""

import hashlib
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cfgjax.base.errors import UsageError
from cfgjax.base.files import read_npz, writing
from cfgjax.base.json_files import HASH, read_json, write_json
from cfgjax.base.storage import Place, place, rename

log = logging.getLogger("cfgjax")

HashedArrays = Mapping[str, ArrayLike]


class NoHash(UsageError):
    """The file has no hash: an older version wrote it."""


def write_arrays(path: Place, arrays: HashedArrays, identity: str = "") -> None:
    """Writes {name: array} to an .npz file, atomically, with their hash as the array HASH.

    identity: text that describes what the arrays depend on, and is hashed with them.
    """
    hashed: dict = {**arrays, HASH: np.array(arrays_hash(arrays, identity))}
    with writing(path) as new, open(new, "wb") as file:
        np.savez(file, **hashed)


def read_arrays(path: str | Place, identity: str = "") -> dict[str, np.ndarray]:
    """Returns the {name: array} that `write_arrays` wrote.

    Raises NoHash for a file without a hash, UsageError for one that cannot be read or does not match its hash.
    """
    arrays = read_npz(path)
    recorded = arrays.pop(HASH, None)
    if recorded is None:
        raise NoHash(f"{path} has no hash (older versions wrote none)")
    if str(recorded) != arrays_hash(arrays, identity):
        raise UsageError(f"cannot read {path}: its content does not match its hash")
    return arrays


def is_intact(path: Place, identity: str) -> bool:
    """Returns whether a file of `write_arrays` exists and matches its hash and identity; if not, it is reported."""
    try:
        read_arrays(path, identity)
        return True
    except UsageError as e:
        log.warning("%s; its setting is measured again", e)
        return False


def influences_file(metrics: Place) -> Place:
    """Returns the file of the samples' influences on the metrics in a file metrics-….json."""
    return metrics.with_name(metrics.name.replace("metrics-", "influences-")).with_suffix(".npz")


def read_influences(path: str | Place) -> dict[str, np.ndarray]:
    """Returns the {name: array} of an `influences_file`, with the identity of its file of metrics.

    Raises UsageError for a file that is missing or damaged, or of another identity.
    """
    metrics = place(path).with_name(place(path).name.replace("influences-", "metrics-")).with_suffix(".json")
    try:
        identity = read_json(metrics, keys={"identity": str, "metrics": dict}, hashed=True)["identity"]
    except FileNotFoundError:
        raise UsageError(f"{metrics} does not exist") from None
    return read_arrays(path, identity)


def arrays_hash(arrays: HashedArrays, identity: str = "") -> str:
    """Returns the hexadecimal SHA-256 of the text `identity` and the names, types, shapes and values of arrays."""
    digest = hashlib.sha256(identity.encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode() + array.tobytes())
    return digest.hexdigest()


def write_hashed_metrics(path: Place, identity: str, metrics: Mapping[str, Any]) -> None:
    """Writes {name: value} to a JSON file, atomically, with a hash. identity: text on which the metrics depend."""
    write_json(path, {"identity": identity, "metrics": metrics}, hashed=True)


def read_hashed_metrics(path: Place, identity: str) -> dict[str, Any] | None:
    """Returns the metrics that `write_hashed_metrics` wrote, or None if there is no such file.

    A file that is damaged, has another identity or has no hash is reported and renamed; None is returned too.
    """
    try:
        content = read_json(path, keys={"identity": str, "metrics": dict}, hashed=True)
        if content["identity"] != identity:
            raise UsageError(f"{path} has the metrics of other samples")
        return content["metrics"]
    except FileNotFoundError:
        return None
    except UsageError as e:
        log.warning("%s; its setting is measured again", e)
        rename(path, f"{path.stem}.damaged")
        return None
