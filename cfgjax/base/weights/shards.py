"""Reads state dicts split over several files, with a JSON index: Hugging Face's `*.index.json`."""

import re
from pathlib import Path

from cfgjax.base.errors import UsageError
from cfgjax.base.json_files import read_json

SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)(?P<ending>(\.\w+)+)")


def shards_of(path):
    """Returns {file name: its keys} of an index.

    Raises UsageError if the index is damaged, a shard is missing, or the folder has shards that it does not name.
    """
    path = Path(path)
    keys_of: dict = {}
    for key, name in read_json(path, keys={"weight_map": dict})["weight_map"].items():
        if not isinstance(name, str) or Path(name).name != name or not name.strip("."):
            raise UsageError(f"{path} is damaged: it places {key} in {name!r}, which is not the name of a file")
        keys_of.setdefault(name, set()).add(key)
    if not keys_of:
        raise UsageError(f"{path} is damaged: its weight_map is empty")
    if missing := sorted(name for name in keys_of if not (path.parent / name).is_file()):
        raise UsageError(f"{path} names {len(keys_of)} shards, of which {', '.join(missing[:10])} are missing")
    if extra := extra_shards(path.parent, keys_of):
        raise UsageError(f"{path.parent} has shards that {path.name} does not name: {', '.join(extra[:10])}")
    return keys_of


def extra_shards(folder, names):
    """Returns the shards in a folder that have the same stem as those in `names` but are not among them, sorted."""
    families = {(match["stem"], match["ending"]) for name in names if (match := SHARD.fullmatch(name))}
    found = [match for path in folder.iterdir() if (match := SHARD.fullmatch(path.name))]
    return sorted(m.string for m in found if (m["stem"], m["ending"]) in families and m.string not in names)


def read_shards(path, read):
    """Returns {key: array} of all shards of an index; read: function from a file's path to {key: array}."""
    found: dict = {}
    for name, keys in sorted(shards_of(path).items()):
        shard = read(Path(path).parent / name)
        if missing := sorted(keys - shard.keys()):
            raise UsageError(f"{path} places {missing[0]} in {name}, which does not have it ({len(missing)} in all)")
        if extra := sorted(shard.keys() - keys):
            raise UsageError(f"{name} has {extra[0]}, which {path} does not place there ({len(extra)} in all)")
        found |= shard
    return found
