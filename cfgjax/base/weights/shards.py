"""Reads state dicts split over several files with a JSON index, such as Hugging Face's `*.index.json`."""

import re
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from cfgjax.base.errors import UsageError
from cfgjax.base.json_files import read_json
from cfgjax.base.storage import AnyPath

SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)(?P<ending>(\.\w+)+)")


def shards_of(path: AnyPath) -> dict[str, set[str]]:
    """Returns {file name: set of its keys} of an index.

    Raises UsageError if the index is damaged, a shard is missing, or the folder has shards that are not in the index.
    """
    path = Path(path)
    keys_of: dict[str, set[str]] = {}
    for key, name in read_json(path, keys={"weight_map": dict})["weight_map"].items():
        if not isinstance(name, str) or Path(name).name != name or not name.strip("."):
            raise UsageError(f"{path} is damaged: it places {key} in {name!r}, which is not the name of a file")
        keys_of.setdefault(name, set()).add(key)
    if not keys_of:
        raise UsageError(f"{path} is damaged: its weight_map is empty")
    if missing := sorted(name for name in keys_of if not (path.parent / name).is_file()):
        raise UsageError(f"{path} names {len(keys_of)} shards; missing: {', '.join(missing[:10])}")
    if extra := extra_shards(path.parent, keys_of):
        raise UsageError(f"{path.parent} has shards that {path.name} does not name: {', '.join(extra[:10])}")
    return keys_of


def extra_shards(folder: Path, names: Collection[str]) -> list[str]:
    """Returns the sorted shards in a folder that share a stem with those in `names` but are not in `names`."""
    families = {(match["stem"], match["ending"]) for name in names if (match := SHARD.fullmatch(name))}
    found = [match for path in folder.iterdir() if (match := SHARD.fullmatch(path.name))]
    return sorted(m.string for m in found if (m["stem"], m["ending"]) in families and m.string not in names)


def read_shards(path: AnyPath, read: Callable[[Path], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns {key: array} of all shards of an index. read: function from a file's path to {key: array}."""
    found: dict[str, np.ndarray] = {}
    for name, keys in sorted(shards_of(path).items()):
        shard = read(Path(path).parent / name)
        if missing := sorted(keys - shard.keys()):
            raise UsageError(f"{path} places {missing[0]} in {name}, which does not have it ({len(missing)} such keys)")
        if extra := sorted(shard.keys() - keys):
            raise UsageError(f"{name} has {extra[0]}, which {path} does not place there ({len(extra)} such keys)")
        found |= shard
    return found
