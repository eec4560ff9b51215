"""The frontiers that lie in given folders: of a run, of the runs of a sweep, or of one network in several parts."""

import json
import re
import shlex
from pathlib import Path

from cfgjax.errors import UsageError

PLACES = (("evaluation", "frontier.json"), ("frontier.json",))


def gather(paths):
    """[(path of a frontier.json, its content)] of paths: files, workdirs, evaluation folders, or folders of those.

    In a folder of several, parts of one network's frontier, as a sweep of evaluate leaves them, are joined into one, of
    that folder's name.
    """
    found = []
    for path in paths:
        files = find(path)
        parts: dict = {}
        for file, content in zip(files, map(read, files), strict=True):
            parts.setdefault(sameness(content) or file, []).append((file, content))
        for same in parts.values():
            found.append(same[0] if len(same) == 1 else (Path(path) / "frontier.json", joined([c for _, c in same])))
    return found


def find(path):
    """The frontier.json that path is, or that lies in it; those in the folders in it, where there is none."""
    folder = Path(path)
    if folder.is_file():
        return [folder]
    here = first(folder)
    if here is not None:
        return [here]
    below = [first(child) for child in sorted(folder.glob("*/"), key=natural)]
    if files := [file for file in below if file is not None]:
        return files
    raise UsageError(unevaluated(folder))


def unevaluated(folder):
    """Why nothing can be compared in a folder, and the command that helps."""
    if not folder.is_dir():
        return f"{folder} is no file or folder"
    below = sorted(folder.glob("*/"), key=natural)
    evaluate = lambda run: f"cfgjax evaluate --workdir={shlex.quote(str(run))}"
    if runs := [child for child in below if (child / "config.json").is_file()]:
        what = f"none of the {len(runs)} runs in {folder} has been evaluated (there is no frontier.json)"
        return f"{what}; evaluate each, such as: {evaluate(runs[0])}"
    if any(child.with_name(f"{child.name}.log").is_file() for child in below):
        return f"no evaluation in {folder} has ended (there is no frontier.json); give its `cfgjax sweep` command again"
    return f"{folder} has no frontier.json; a run, evaluate it first: {evaluate(folder)}"


def first(folder):
    """The frontier.json of a workdir or of an evaluation folder, or None."""
    return next((file for place in PLACES if (file := folder.joinpath(*place)).is_file()), None)


def natural(path):
    """A key by which names are sorted with the numbers in them as numbers."""
    parts = re.split(r"(\d+(?:\.\d+)?)", path.name)
    return [(part, 0.0) if i % 2 == 0 else ("", float(part)) for i, part in enumerate(parts)]


def read(file):
    """The content of a JSON file."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UsageError(f"cannot read {file}: {e}") from e


def sameness(content):
    """Text that is the same for frontiers of one network, measured in the same way; None of anything else."""
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        return None
    return json.dumps({key: value for key, value in content.items() if key not in ("rows", "tilted")}, sort_keys=True)


def joined(contents):
    """One frontier of several of one network: all rows, each once, w increasing."""
    rows: list = []
    for content in contents:
        rows += [row for row in content["rows"] if row not in rows]
    return {**contents[0], "rows": sorted(rows, key=lambda row: row["guidance_weight"])}
