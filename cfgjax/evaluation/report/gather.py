"""Finds the frontier.json files in folders, of a run or of the runs of a sweep, and joins parts of one frontier."""

import json
import re
import shlex
from collections.abc import Sequence
from types import NoneType
from typing import Any

from cfgjax.base.errors import UsageError
from cfgjax.base.json_files import HASH, check_keys, check_type, content_hash, read_json
from cfgjax.base.storage import Place, place, subfolders
from cfgjax.evaluation.report.frontier_rows import COST, INFLUENCES, INTERVAL
from cfgjax.evaluation.report.protocol import protocol
from cfgjax.runs.sample_options import earlier_sampler, fields

TEXT_OR_NULL, NUMBER_OR_NULL = (str, NoneType), (float, NoneType)
ROW: dict[str, Any] = {"guidance_weight": float, "num_steps": (int, str), "num_samples": int, "ema": float}
ROW |= dict.fromkeys(("scores", "rule", "sampler", "label_policy"), str)  # settings of every row
MORE: dict[str, Any] = {"classifier": TEXT_OR_NULL, "classifier_scale": NUMBER_OR_NULL, "accuracy_per_class": list}
MORE |= {"weak": TEXT_OR_NULL, "baseline": str, INFLUENCES: str, INTERVAL: str, COST: int}
MAX_INTEGER = 1e300  # in a row; larger ones do not fit a float
REMEDY = "write it again with cfgjax evaluate"
FRONTIER_PLACES = (("evaluation", "frontier.json"), ("frontier.json",))


def gather(paths: Sequence[str | Place]) -> list[tuple[Place, dict[str, Any]]]:
    """Returns [(path, content)] of the frontiers in paths: files, workdirs, evaluation folders, or folders of these.

    In a folder with several frontiers, those of the same network and measurement, such as a sweep of `cfgjax evaluate`
    writes, are joined into one with the name of the folder.
    """
    result = []
    for path in paths:
        try:
            files = find(path)
        except OSError as e:
            raise UsageError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from e
        parts: dict[str, list[tuple[Place, dict[str, Any]]]] = {}
        for file, content in zip(files, map(read, files), strict=True):
            parts.setdefault(sameness(content), []).append((file, content))
        for same in parts.values():
            result.append(
                same[0] if len(same) == 1 else (place(path) / "frontier.json", joined_frontier([c for _, c in same]))
            )
    return result


def find(path: str | Place) -> list[Place]:
    """Returns path if it is a file, its frontier.json, or else those of the folders in it."""
    folder = place(path)
    if folder.is_file():
        return [folder]
    here = find_frontier(folder)
    if here is not None:
        return [here]
    below = [find_frontier(child) for child in sorted(subfolders(folder), key=natural)]
    if files := [file for file in below if file is not None]:
        return files
    raise UsageError(unevaluated(folder))


def unevaluated(folder: Place) -> str:
    """Returns the reason why nothing can be compared in a folder, with the command to run."""
    if not folder.is_dir():
        return f"{folder} does not exist"
    below = sorted(subfolders(folder), key=natural)
    evaluate = lambda run: f"cfgjax evaluate --workdir={shlex.quote(str(run))}"
    if runs := [child for child in below if (child / "config.json").is_file()]:
        what = f"none of the {len(runs)} runs in {folder} has been evaluated (there is no frontier.json)"
        return f"{what}; evaluate each, such as: {evaluate(runs[0])}"
    if any(child.with_name(f"{child.name}.log").is_file() for child in below):
        return f"no evaluation in {folder} is complete (there is no frontier.json); repeat its `cfgjax sweep` command"
    return f"{folder} has no frontier.json; if it is a run, evaluate it first: {evaluate(folder)}"


def find_frontier(folder: Place) -> Place | None:
    """Returns the frontier.json of a workdir or of an evaluation folder, or None."""
    return next((file for place in FRONTIER_PLACES if (file := folder.joinpath(*place)).is_file()), None)


def natural(path: Place) -> list[tuple[str, float]]:
    """Returns a key that sorts the numbers in names by their value."""
    parts = re.split(r"(\d+(?:\.\d+)?)", path.name)
    return [(part, 0.0) if i % 2 == 0 else ("", float(part)) for i, part in enumerate(parts)]


def read(file: Place) -> dict[str, Any]:
    """Returns the content of a frontier.json without its hash. Raises UsageError if it is damaged or altered."""
    try:
        content = read_json(file, remedy=REMEDY)
    except FileNotFoundError:
        raise UsageError(f"cannot read {file}: No such file") from None
    try:
        recorded = content.pop(HASH, None)  # older versions wrote none
        if recorded not in (None, content_hash({key: value for key, value in content.items() if key != "tilted"})):
            raise ValueError("its content does not match its hash")
        content["rows"] = [upgraded_row(row) for row in frontier_rows(content)]
        check_rows(content)
        content["rows"] = [with_path(row, file.parent) for row in content["rows"]]
    except ValueError as e:
        raise UsageError(f"{file} is not what cfgjax evaluate writes: {e}; {REMEDY}") from e
    return content


def frontier_rows(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows. Raises ValueError if there are none or one is no object."""
    check_keys(content, {"rows": list})
    if not content["rows"]:
        raise ValueError("it has no rows")
    for i, row in enumerate(content["rows"]):
        check_type(f"row {i}", row, dict)
    return content["rows"]


def upgraded_row(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a row with its rule and sampler as specs; older versions wrote v, eta and classifier_form.

    Raises ValueError if these are damaged.
    """
    if "rule" in row or "v" not in row:
        return row
    check_keys(row, {"sampler": str, "v": NUMBER_OR_NULL, "eta": NUMBER_OR_NULL})
    form = row.get("classifier_form") or "eps"
    rule = "cfg()" if not row.get("classifier") else f"classifier({'' if form == 'eps' else f'form={form!r}'})"
    kept = {name: value for name, value in row.items() if name not in ("v", "eta", "classifier_form")}
    return kept | {"rule": rule, "sampler": earlier_sampler(row["sampler"], row)}


def with_path(row: dict[str, Any], folder: Place) -> dict[str, Any]:
    """Returns a row with the path of its influences, which it has relative to its folder."""
    return row | ({INFLUENCES: str(folder / row[INFLUENCES])} if INFLUENCES in row else {})


def check_rows(content: dict[str, Any]) -> None:
    """Raises ValueError unless each row has all settings and only numbers as metrics."""
    for i, row in enumerate(content["rows"]):
        check_keys(row, ROW, of=f" in row {i}")
        for name, value in row.items():
            option = (str, float, int, NoneType) if name in fields() else float  # added after the ones above
            check_type(f"its {name!r} in row {i}", value, ROW.get(name) or MORE.get(name) or option)
            if isinstance(value, int) and abs(value) > MAX_INTEGER:
                raise ValueError(f"its {name!r} in row {i} is too large a number")


def sameness(content: dict[str, Any]) -> str:
    """Returns text that is equal for frontiers of the same network and measurement."""
    return json.dumps(
        {key: value for key, value in content.items() if key not in ("rows", "tilted", "protocol")}, sort_keys=True
    )


def joined_frontier(contents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns one frontier with the rows of several, without duplicates, in order of w."""
    rows: list[dict[str, Any]] = []
    for content in contents:
        rows += [row for row in content["rows"] if row not in rows]
    rows = sorted(rows, key=lambda row: row["guidance_weight"])
    return {**contents[0], "protocol": protocol(contents[0], rows), "rows": rows}
