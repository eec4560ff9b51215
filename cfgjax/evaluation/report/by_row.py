"""A table of the settings of several runs, with a line and the cost of each."""

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from cfgjax.base.cells import aligned, cell_text, text
from cfgjax.base.errors import UsageError
from cfgjax.diffusion.specs import parse
from cfgjax.evaluation.report import frontier_rows as report
from cfgjax.evaluation.report.differences import change_text, differences_title
from cfgjax.evaluation.report.frontier_rows import COST, INFLUENCES, Row


def rows_table(records: dict[str, dict[str, Any]]) -> list[str]:
    """Returns the lines of a table with the cost and metrics of each setting in {label: content of a frontier.json}.

    Its columns calls and gradients count, per sample, those of the diffusion network and of the classifier.
    """
    metrics = list(dict.fromkeys(name for record in records.values() for name in report.shown_names(record["rows"])))
    lines = [["run", "w", "rule", "classifier scale", "sampler", "T", "calls", "gradients", *metrics]]
    for label, record in records.items():
        for rows in by_setting(record["rows"], ("guidance_weight", *report.setting_keys())):
            row, scale = rows[0], rows[0].get("classifier_scale") or 0.0
            cost = ["-" if number is None else str(number) for number in calls(row, bool(scale))]
            values = [(*report.spread(rows, name), len(rows)) if name in row else None for name in metrics]
            cells = [cell_text(cell, ".4g") for cell in values]
            name = label if row["scores"] == "learned" else f"{label}, {row['scores']} scores"
            setting = [f"{row['guidance_weight']:g}", row["rule"], f"{scale:g}", row["sampler"], str(row["num_steps"])]
            lines.append([name, *setting, *cost, *cells])
    return aligned(lines, right=True)


def changes_table(rows: Sequence[Row]) -> list[str]:
    """Returns the lines of a table with the differences of each setting from its baseline, the mean over the seeds.

    rows: of `rows_with_changes`. A setting that is the same in all rows has no column.
    """
    keys = ["run", *(key for key in report.setting_keys() if key != "num_steps")]
    keys = [key for key in keys if len({text(row.get(key)) for row in rows}) > 1]
    names = [name for name in report.shown_names(rows) if all(f"{name}_change" in row for row in rows)]
    lines = [[*keys, "w", "T", "calls", *names]]
    for same in by_setting(rows, ("run", "guidance_weight", *report.setting_keys())):
        row = same[0]
        setting = [*(text(row.get(key)) for key in keys), f"{row['guidance_weight']:g}", str(row["num_steps"])]
        changes = [change_text(same, name) for name in names]
        lines.append([*setting, text(calls(row, bool(row.get("classifier_scale")))[0]), *changes])
    return [differences_title(rows), *aligned(lines, right=True)]


def written_rows(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows without paths and without lists, for a file."""
    return [{k: v for k, v in row.items() if k != INFLUENCES and not isinstance(v, list)} for row in rows]


def rows_csv(rows: Sequence[Row], form: str = "") -> str:
    """Returns rows as CSV, with a column for each of their keys and empty cells for missing values.

    form: format of the numbers that are floats.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    cell = lambda value: format(value, form) if isinstance(value, float) else value
    writer.writerows({key: cell(value) for key, value in row.items()} for row in rows)
    return out.getvalue()


def by_setting(rows: Sequence[Row], keys: Sequence[str]) -> list[list[Row]]:
    """Returns the rows of each setting: those that agree in the keys."""
    same: dict[tuple, list[Row]] = {}
    for row in rows:
        same.setdefault(tuple(str(row.get(key)) for key in keys), []).append(row)
    return list(same.values())


def calls(row: dict[str, Any], guided: bool) -> tuple[int | None, int | None]:
    """Returns how often the diffusion network and the classifier are called for a sample; None where it is unknown.

    guided: whether a classifier guides. Rows of older versions have no number; it is found for rules that compute the
    same branches at every level.
    """
    from cfgjax.diffusion.guidance import RULES, at_zero
    from cfgjax.diffusion.guidance import evaluations as rule_evaluations
    from cfgjax.diffusion.samplers import SAMPLERS

    if not isinstance(row["num_steps"], int):
        return row.get(COST), None
    try:
        rule, sampler = parse(row["rule"], RULES, "rule"), parse(row["sampler"], SAMPLERS, "sampler")
    except UsageError:  # a rule or sampler of the user's own
        return row.get(COST), None
    evaluations = sampler.evaluations(row["num_steps"])
    if COST in row:
        return row[COST], evaluations if guided else 0
    # no level of a grid in particular: a rule whose evaluations depend on the level has no number here
    branches = set(
        rule_evaluations(rule if row["guidance_weight"] else at_zero(rule), np.linspace(-30, 30, 999)).tolist()
    )
    return branches.pop() * evaluations if len(branches) == 1 else None, evaluations if guided else 0
