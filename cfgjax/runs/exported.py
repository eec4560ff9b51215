"""An exported model on disk: config.json as in a workdir, and its parameters in one file of safetensors."""

import hashlib
import stat
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from cfgjax.base.errors import UsageError
from cfgjax.base.json_files import read_json, write_json
from cfgjax.base.staging import opened_locally
from cfgjax.base.storage import Place, absolute, place
from cfgjax.base.weights import read_state_dict

EXPORT_FILE, WEIGHTS_FILE = "export.json", "model.safetensors"
EXPORT_AGAIN = "export the model again"


class ExportedParameters(NamedTuple):
    """The parameters in an exported folder. step, ema: of the average that was exported. digest: of the file."""

    path: str
    step: int
    ema: float
    digest: str

    def read(self) -> PyTree:
        """Returns the parameters as numpy arrays. Raises UsageError if the file is missing or damaged."""
        with opened_locally(self.path) as local:
            if file_digest(local) != self.digest:
                raise UsageError(f"{self.path} does not match {EXPORT_FILE}; {EXPORT_AGAIN}")
            return nested(read_state_dict(local))


def is_exported(workdir: str | Place) -> bool:
    """Returns whether a folder holds an exported model."""
    return (place(workdir) / EXPORT_FILE).is_file()


def exported_parameters(workdir: str | Place, step: int | None = None, ema: float | None = None) -> ExportedParameters:
    """Returns the `ExportedParameters` of a folder. Raises UsageError if they are of another step or average."""
    path = absolute(workdir)
    found = read_json(path / EXPORT_FILE, keys={"step": int, "ema": float, "digest": str}, remedy=EXPORT_AGAIN)
    for name, value in (("step", step), ("ema", ema)):
        if value is not None and value != found[name]:
            raise UsageError(f"{workdir} is an exported model of {name} {found[name]:g}; it has no {name} {value:g}")
    return ExportedParameters(str(path / WEIGHTS_FILE), found["step"], float(found["ema"]), found["digest"])


def write_exported(folder: Place, params: PyTree, step: int, ema: float, about: dict[str, Any]) -> None:
    """Writes the parameters of an average, and `about` next to its step and digest. Needs the library safetensors."""
    from safetensors.numpy import save_file

    save_file(by_path(params), folder / WEIGHTS_FILE, metadata={"format": "flax"})
    (folder / WEIGHTS_FILE).chmod(stat.S_IMODE(folder.stat().st_mode) & 0o666)  # the library makes it private
    digest = file_digest(folder / WEIGHTS_FILE)
    write_json(folder / EXPORT_FILE, {"step": step, "ema": ema, "digest": digest, **about}, indent=1)


def by_path(params: PyTree, prefix: str = "") -> dict[str, np.ndarray]:
    """Returns {"block/kernel": array} of nested dicts."""
    found: dict[str, np.ndarray] = {}
    for name, value in params.items():
        path = f"{prefix}{name}"
        found |= by_path(value, f"{path}/") if isinstance(value, dict) else {path: contiguous(value)}
    return found


def contiguous(array: Any) -> np.ndarray:
    """Returns an array in C order, with its shape: `np.ascontiguousarray` makes a scalar an array of one."""
    return np.array(array, order="C")


def nested(arrays: dict[str, np.ndarray]) -> PyTree:
    """Returns the nested dicts of {"block/kernel": array}."""
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        *outer, name = path.split("/")
        inner = tree
        for part in outer:
            inner = inner.setdefault(part, {})
        inner[name] = array
    return tree


def file_digest(path: Place) -> str:
    """Returns the SHA-256 of a file. Raises UsageError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}; {EXPORT_AGAIN}") from None
