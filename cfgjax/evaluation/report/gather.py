"""The frontiers that lie in given folders: of a run, of the runs of a sweep, or of one network in several parts."""

import json
import re
import shlex
from pathlib import Path

from cfgjax.base.errors import UsageError
from cfgjax.base.json_files import HASH, check_keys, check_type, content_hash, read_json

NONE = type(None)
TEXT, NUMBER = (str, NONE), (float, NONE)
ROW = {"guidance_weight": float, "num_steps": (int, str), "num_samples": int, "v": NUMBER, "eta": NUMBER, "ema": float}
ROW |= dict.fromkeys(("scores", "sampler", "label_policy"), str)  # settings of every row
MORE = {"classifier": TEXT, "classifier_scale": NUMBER, "classifier_form": TEXT, "accuracy_per_class": list}
MAX_INTEGER = 1e300  # in a row; larger ones do not fit a float
REMEDY = "write it anew with cfgjax evaluate"
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
            parts.setdefault(sameness(content), []).append((file, content))
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
    """Returns the reason why nothing can be compared in a folder, with the command to run."""
    if not folder.is_dir():
        return f"{folder} does not exist"
    below = sorted(folder.glob("*/"), key=natural)
    evaluate = lambda run: f"cfgjax evaluate --workdir={shlex.quote(str(run))}"
    if runs := [child for child in below if (child / "config.json").is_file()]:
        what = f"none of the {len(runs)} runs in {folder} has been evaluated (there is no frontier.json)"
        return f"{what}; evaluate each, such as: {evaluate(runs[0])}"
    if any(child.with_name(f"{child.name}.log").is_file() for child in below):
        return f"no evaluation in {folder} is complete (there is no frontier.json); repeat its `cfgjax sweep` command"
    return f"{folder} has no frontier.json; if it is a run, evaluate it first: {evaluate(folder)}"


def first(folder):
    """The frontier.json of a workdir or of an evaluation folder, or None."""
    return next((file for place in PLACES if (file := folder.joinpath(*place)).is_file()), None)


def natural(path):
    """A key by which names are sorted with the numbers in them as numbers."""
    parts = re.split(r"(\d+(?:\.\d+)?)", path.name)
    return [(part, 0.0) if i % 2 == 0 else ("", float(part)) for i, part in enumerate(parts)]


def read(file):
    """Returns the content of a frontier.json without its hash. Raises UsageError if it is damaged or altered."""
    try:
        content = read_json(file, remedy=REMEDY)
    except FileNotFoundError:
        raise UsageError(f"cannot read {file}: No such file") from None
    try:
        recorded = content.pop(HASH, None)  # older versions wrote none
        if recorded not in (None, content_hash({key: value for key, value in content.items() if key != "tilted"})):
            raise ValueError("its content does not match its hash")
        check_rows(content)
    except ValueError as e:
        raise UsageError(f"{file} is not what cfgjax evaluate writes: {e}; {REMEDY}") from e
    return content


def check_rows(content):
    """Raises ValueError unless content has rows, and each row has all settings and only numbers as metrics."""
    check_keys(content, {"rows": list})
    if not content["rows"]:
        raise ValueError("it has no rows")
    for i, row in enumerate(content["rows"]):
        check_type(f"row {i}", row, dict)
        check_keys(row, ROW, of=f" in row {i}")
        for name, value in row.items():
            check_type(f"its {name!r} in row {i}", value, ROW.get(name) or MORE.get(name) or float)
            if isinstance(value, int) and abs(value) > MAX_INTEGER:
                raise ValueError(f"its {name!r} in row {i} is too large a number")


def sameness(content):
    """Returns text that is equal for frontiers of the same network and measurement."""
    return json.dumps({key: value for key, value in content.items() if key not in ("rows", "tilted")}, sort_keys=True)


def joined(contents):
    """One frontier of several of one network: all rows, each once, w increasing."""
    rows: list = []
    for content in contents:
        rows += [row for row in content["rows"] if row not in rows]
    return {**contents[0], "rows": sorted(rows, key=lambda row: row["guidance_weight"])}
