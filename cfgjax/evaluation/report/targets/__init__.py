"""Published results: {name, source, setting, recalled, rows, …} in a JSON file each.

setting: the setting of all rows, with null for what is not stated. A row has its guidance weight w, its metrics and
possibly further settings. recalled: settings remembered from the paper, not checked against its text.
"""

from pathlib import Path
from typing import Any

from cfgjax.base.errors import UsageError, choose, nearest
from cfgjax.base.json_files import read_json
from cfgjax.base.storage import place
from cfgjax.diffusion.specs import named_arguments

Targets = dict[str, Any]  # in the form above

MAX_NUMBER = 1e30  # in rows

SETTINGS = (
    *("num_samples", "label_policy", "sampler", "num_steps", "v", "features", "image_shape", "num_classes", "data"),
    *("reference", "conditional", "p_uncond"),
)
PUBLISHED_METRICS = {
    "fid": "FID",
    "sfid": "sFID",
    "inception_score": "IS",
    "precision": "precision",
    "recall": "recall",
}


def published_targets() -> dict[str, Path]:
    """Returns {name: file} of the targets in the package."""
    return {file.stem: file for file in sorted(Path(__file__).parent.glob("*.json"))}


def load_targets(name: str) -> Targets:
    """Returns the targets with a name of `published_targets`, or those in a JSON file of the same form."""
    file = place(name) if name.endswith(".json") or "/" in name else choose("targets", name, published_targets())
    try:
        targets = read_json(file)
    except FileNotFoundError:
        raise UsageError(f"cannot read {name}: No such file; there are {', '.join(published_targets())}") from None
    check_targets(targets, name)
    return targets


def check_targets(targets: Targets, path: str) -> None:
    """Raises UsageError unless targets have the form above, with each setting either in `setting` or in every row."""
    needed = {"name": str, "source": str, "setting": dict, "rows": list}
    if not all(isinstance(targets.get(key), kind) for key, kind in needed.items()):
        raise UsageError(f"{path} holds no targets: need texts name and source, an object setting and a list of rows")
    setting, rows = targets["setting"], targets["rows"]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{path} holds no targets: rows must be at least one object")
    baselines, recalled = targets.get("baselines", []), targets.get("recalled", [])
    if not isinstance(baselines, list) or not all(isinstance(row, dict) for row in baselines):
        raise UsageError(f"{path}: baselines must be a list of objects")
    if not isinstance(recalled, list) or not all(isinstance(text, str) for text in recalled):
        raise UsageError(f"{path}: recalled must be a list of texts")
    for key, value in (
        (key, row[key]) for row in [*rows, *baselines] for key in ("w", *PUBLISHED_METRICS) if key in row
    ):
        if type(value) not in (int, float) or not -MAX_NUMBER < value < MAX_NUMBER:
            raise UsageError(f"{path}: a row has the {key} {value!r}; need a number, or leave it out")
    for name in setting:
        if name not in SETTINGS:
            raise UsageError(f"{path}: unknown setting {name!r}{nearest(name, SETTINGS)}")
        if any(name in row for row in rows):
            raise UsageError(f"{path}: {name} is in setting and in rows; need one of them")
    if absent := [name for name in SETTINGS if name not in setting and not all(name in row for row in rows)]:
        raise UsageError(f"{path}: setting lacks {', '.join(absent)}; use null for what is not stated")


def stated(targets: Targets, name: str) -> list[Any]:
    """Returns the published values of a setting, which may be in the rows; [] if it is not stated."""
    values = [targets["setting"][name]] if name in targets["setting"] else [row[name] for row in targets["rows"]]
    return [value for i, value in enumerate(values) if value is not None and value not in values[:i]]


def published_form(sampler: str) -> dict[str, Any]:
    """Returns {"sampler": name, "v": value} of a sampler's text, as published settings have them."""
    name, options = named_arguments(sampler)
    v = options.get("v", "learned") if name == "ancestral" else None
    return {"sampler": sampler if name != "ancestral" and options else name, "v": v}
