"""Manifests of a run's steps, with the hashes of all files: they decide which steps are complete."""

import json
import logging
from pathlib import Path

from cfgjax.base.errors import UsageError
from cfgjax.base.files import sha256
from cfgjax.base.json_files import read_json

log = logging.getLogger("cfgjax")

MANIFEST = "manifest.json"
REWRITTEN = "_CHECKPOINT_METADATA"  # Orbax adds the time of the commit after the manifest is made
NONE = type(None)
ORBAX_KEYS: dict = dict.fromkeys(("metrics", "performance_metrics", "custom_metadata"), (dict, NONE))  # of REWRITTEN
ORBAX_KEYS |= dict.fromkeys(("init_timestamp_nsecs", "commit_timestamp_nsecs"), (int, NONE))
ORBAX_KEYS |= {"item_handlers": (dict, str, NONE)}


def step_directories(directory):
    """Returns the steps that have a directory, complete or not."""
    return [int(path.name) for path in Path(directory).glob("*") if path.is_dir() and is_step(path.name)]


def is_step(name):
    """Whether this is a name that Orbax gives to a step's directory."""
    return name.isdecimal() and str(int(name)) == name


def write_manifest(directory):
    """Writes the manifest of a step's directory."""
    (directory / MANIFEST).write_text(json.dumps(hashes(directory), indent=1))


def manifest_digest(directory, step):
    """The SHA-256 of a step's manifest, which has those of all its files."""
    return sha256(Path(directory) / str(step) / MANIFEST)


def whole_steps(directory):
    """Returns the steps whose files match their manifest."""
    return [step for step in step_directories(directory) if not damage(Path(directory) / str(step))]


def damage(path):
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


def move_damaged_metadata(directory):
    """Renames damaged metadata of Orbax, which it does not need to read a step."""
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


def hashes(directory):
    """{relative path: SHA-256} of every file below directory that a later commit does not rewrite."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name not in (MANIFEST, REWRITTEN))
    return {str(path.relative_to(directory)): sha256(path) for path in files}
