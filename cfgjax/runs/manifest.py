"""Manifests with the hashes of all files of a checkpoint step. A step is complete if its files match its manifest."""

import json
import logging
from pathlib import Path
from types import NoneType

from cfgjax.base.errors import UsageError
from cfgjax.base.files import sha256
from cfgjax.base.json_files import read_json

log = logging.getLogger("cfgjax")

MANIFEST = "manifest.json"
REWRITTEN = "_CHECKPOINT_METADATA"  # Orbax adds the commit time to it after the manifest is written
ORBAX_KEYS: dict[str, tuple[type, ...]] = {  # of REWRITTEN
    "metrics": (dict, NoneType),
    "performance_metrics": (dict, NoneType),
    "custom_metadata": (dict, NoneType),
}
ORBAX_KEYS |= dict.fromkeys(("init_timestamp_nsecs", "commit_timestamp_nsecs"), (int, NoneType))
ORBAX_KEYS |= {"item_handlers": (dict, str, NoneType)}


def step_directories(directory: str | Path) -> list[int]:
    """Returns the steps that have a directory, complete or not."""
    return [int(path.name) for path in Path(directory).glob("*") if path.is_dir() and is_step(path.name)]


def is_step(name: str) -> bool:
    """Whether `name` is that of a step directory of Orbax."""
    return name.isdecimal() and str(int(name)) == name


def write_manifest(directory: Path) -> None:
    """Writes the manifest of a step's directory."""
    (directory / MANIFEST).write_text(json.dumps(hashes(directory), indent=1))


def manifest_digest(directory: str | Path, step: int) -> str:
    """Returns the SHA-256 of a step's manifest, and thereby of all its files."""
    return sha256(Path(directory) / str(step) / MANIFEST)


def complete_steps(directory: str | Path) -> list[int]:
    """Returns the steps whose files match their manifest."""
    return [step for step in step_directories(directory) if not damage(Path(directory) / str(step))]


def damage(path: Path) -> str | None:
    """Returns what is wrong with the step directory at path, or None if it is complete."""
    try:
        manifest = read_json(path / MANIFEST)
        if not manifest:
            return "its manifest is empty"
        for name, digest in manifest.items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if sha256(path / name) != digest:
                return f"{name} has changed since it was saved"
    except FileNotFoundError:
        return "it has no manifest" if path.is_dir() else "there is no such step"
    except (OSError, ValueError) as e:
        return f"it cannot be read: {e}"
    return None


def move_damaged_metadata(directory: str | Path) -> None:
    """Renames damaged metadata files of Orbax, which it can do without."""
    for step in step_directories(directory):
        path = Path(directory) / str(step) / REWRITTEN
        try:
            present = read_json(path)
            read_json(path, keys={name: types for name, types in ORBAX_KEYS.items() if name in present})
        except FileNotFoundError:
            continue
        except UsageError as e:
            log.warning("%s; step %d is read without it", e, step)
            path.replace(path.with_name(f"{REWRITTEN}.damaged"))


def hashes(directory: Path) -> dict[str, str]:
    """Returns {relative path: SHA-256} of every file below directory, except the manifest and REWRITTEN."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name not in (MANIFEST, REWRITTEN))
    return {str(path.relative_to(directory)): sha256(path) for path in files}
