"""Manifests with the hashes of all files of a checkpoint step. A step is complete if its files match its manifest."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import NoneType

from cfgjax.base.errors import UsageError
from cfgjax.base.files import sha256
from cfgjax.base.json_files import read_json
from cfgjax.base.storage import Place, identity, is_url, objects, place, remove_tree, rename

log = logging.getLogger("cfgjax")

MANIFEST = "manifest.json"
COMMITTED = "commit_success.txt"  # Orbax writes it last into a step in a bucket
REWRITTEN = "_CHECKPOINT_METADATA"  # Orbax adds the commit time to it after the manifest is written
ORBAX_KEYS: dict[str, tuple[type, ...]] = {  # of REWRITTEN
    "metrics": (dict, NoneType),
    "performance_metrics": (dict, NoneType),
    "custom_metadata": (dict, NoneType),
}
ORBAX_KEYS |= dict.fromkeys(("init_timestamp_nsecs", "commit_timestamp_nsecs"), (int, NoneType))
ORBAX_KEYS |= {"item_handlers": (dict, str, NoneType)}


def step_directories(directory: str | Place) -> list[int]:
    """Returns the steps that have a directory, complete or not; in a bucket, those that have a manifest.

    Orbax renames a finished step on a disk; in a bucket it writes the step where it stays.
    """
    if is_url(directory):
        return [step for step, names in objects_by_step(directory).items() if MANIFEST in names]
    return [int(path.name) for path in Path(directory).glob("*") if path.is_dir() and is_step(path.name)]


def objects_by_step(directory: str | Place) -> dict[int, dict[str, dict]]:
    """Returns {step: {name: what the server knows of it}} of a directory in a bucket, by one request per thousand."""
    found: dict[int, dict[str, dict]] = {}
    for name, about in objects(directory).items():
        step, _, rest = name.partition("/")
        if rest and is_step(step):
            found.setdefault(int(step), {})[rest] = about
    return found


def remove_unfinished(directory: str | Place) -> None:
    """Removes what a process that ended during a save left in a bucket. On a disk, Orbax does."""
    if is_url(directory):
        for step, names in objects_by_step(directory).items():
            if MANIFEST not in names or COMMITTED not in names:
                log.warning("the save of step %d was not finished; removed", step)
                remove_tree(place(directory) / str(step))


def is_step(name: str) -> bool:
    """Whether `name` is that of a step directory of Orbax."""
    return name.isdecimal() and str(int(name)) == name


def write_manifest(directory: Place, guard: Callable[[], None] = lambda: None) -> None:
    """Writes the manifest of a step's directory. In a bucket it is the last object, without which there is no step.

    guard: raises if this process may write no more; called last.
    """
    text = json.dumps(hashes(directory), indent=1)
    guard()
    (directory / MANIFEST).write_text(text)


def manifest_digest(directory: str | Place, step: int) -> str:
    """Returns the SHA-256 of a step's manifest, and thereby of all its files."""
    return sha256(place(directory) / str(step) / MANIFEST)


def complete_steps(directory: str | Place) -> list[int]:
    """Returns the steps whose files match their manifest."""
    return [step for step in step_directories(directory) if not damage(place(directory) / str(step))]


def damage(path: Place) -> str | None:
    """Returns what is wrong with the step directory at path, or None if it is complete.

    Raises OSError if the server of a bucket fails or refuses: the step may well be complete.
    """
    try:
        manifest = read_json(path / MANIFEST)
        if not manifest:
            return "its manifest is empty"
        if is_url(path):
            return missing_or_changed(manifest, path)
        for name, digest in manifest.items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if sha256(path / name) != digest:
                return f"{name} has changed since it was saved"
    except FileNotFoundError:
        return "it has no manifest" if path.is_dir() else "there is no such step"
    except (OSError, ValueError) as e:
        raise_failed_request(e, path)
        return f"it cannot be read: {e}"
    return None


def raise_failed_request(error: Exception, path: Place) -> None:
    """Raises the error of a server behind an error about a file in a bucket. Does nothing for other errors."""
    failed = error if isinstance(error, OSError) else error.__cause__
    if is_url(path) and isinstance(failed, OSError):
        raise failed


def missing_or_changed(manifest: dict[str, str], path: Place) -> str | None:
    """Returns what is wrong with a step in a bucket, or None if its objects are those of the manifest."""
    found = objects(path)
    if COMMITTED not in found:
        return "its save was not finished"
    for name, known in manifest.items():
        if name not in found:
            return f"{name} is missing"
        if identity(found[name]) != known:
            return f"{name} has changed since it was saved"
    return None


def move_damaged_metadata(directory: str | Place) -> None:
    """Renames damaged metadata files of Orbax, which it can do without."""
    for step in step_directories(directory):
        path = place(directory) / str(step) / REWRITTEN
        try:
            present = read_json(path)
            read_json(path, keys={name: types for name, types in ORBAX_KEYS.items() if name in present})
        except FileNotFoundError:
            continue
        except UsageError as e:
            raise_failed_request(e, path)
            log.warning("%s; step %d is read without it", e, step)
            rename(path, f"{REWRITTEN}.damaged")


def hashes(directory: Place) -> dict[str, str]:
    """Returns {relative path: SHA-256} of every file below directory, except the manifest and REWRITTEN.

    In a bucket, the size and the checksum that the server keeps and checks itself: nothing is read.
    """
    if is_url(directory):
        known = {name: identity(about) for name, about in objects(directory).items()}
        return {name: known[name] for name in sorted(known) if name not in (MANIFEST, REWRITTEN, COMMITTED)}
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name not in (MANIFEST, REWRITTEN))
    return {str(path.relative_to(directory)): sha256(path) for path in files}
