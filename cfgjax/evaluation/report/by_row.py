"""A table of the settings of several runs, with a line and the cost of each."""

from typing import Any

import numpy as np

from cfgjax.base.cells import aligned, cell_text
from cfgjax.base.errors import UsageError
from cfgjax.diffusion.specs import parse
from cfgjax.evaluation.report import frontier_rows as report
from cfgjax.evaluation.report.frontier_rows import COST


def rows_table(records: dict[str, dict[str, Any]]) -> list[str]:
    """Returns the lines of a table with the cost and metrics of each setting in {label: content of a frontier.json}.

    Its columns calls and gradients count, per sample, those of the diffusion network and of the classifier.
    """
    metrics = list(dict.fromkeys(name for record in records.values() for name in report.shown_names(record["rows"])))
    lines = [["run", "w", "rule", "classifier scale", "sampler", "T", "calls", "gradients", *metrics]]
    for label, record in records.items():
        same: dict = {}
        for row in record["rows"]:
            same.setdefault(tuple(str(row.get(key)) for key in ("guidance_weight", *report.setting_keys())), []).append(
                row
            )
        for rows in same.values():
            row, scale = rows[0], rows[0].get("classifier_scale") or 0.0
            cost = ["-" if number is None else str(number) for number in calls(row, bool(scale))]
            values = [(*report.spread(rows, name), len(rows)) if name in row else None for name in metrics]
            cells = [cell_text(cell, ".4g") for cell in values]
            name = label if row["scores"] == "learned" else f"{label}, {row['scores']} scores"
            setting = [f"{row['guidance_weight']:g}", row["rule"], f"{scale:g}", row["sampler"], str(row["num_steps"])]
            lines.append([name, *setting, *cost, *cells])
    return aligned(lines, right=True)


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
