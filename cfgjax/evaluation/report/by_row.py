"""A table of the settings of several runs, with a line and the cost of each."""

from typing import Any

from cfgjax.base.cells import aligned, cell_text
from cfgjax.evaluation.report import files as report


def rows_table(records: dict[str, dict[str, Any]]) -> list[str]:
    """Returns the lines of a table with the cost and metrics of each setting in {label: content of a frontier.json}.

    Its columns calls and gradients count, per sample, those of the diffusion network and of the classifier.
    """
    metrics = list(dict.fromkeys(name for record in records.values() for name in report.shown_names(record["rows"])))
    lines = [["run", "w", "classifier scale", "T", "calls", "gradients", *metrics]]
    for label, record in records.items():
        same: dict = {}
        for row in record["rows"]:
            same.setdefault(tuple(str(row.get(key)) for key in ("guidance_weight", *report.KEYS)), []).append(row)
        for rows in same.values():
            row, scale = rows[0], rows[0].get("classifier_scale") or 0.0
            steps = row["num_steps"] if isinstance(row["num_steps"], int) else None
            per_step = 1 + bool(row["guidance_weight"]), int(bool(scale))
            cost = [str(row["num_steps"]), *("-" if steps is None else str(k * steps) for k in per_step)]
            values = [(*report.spread(rows, name), len(rows)) if name in row else None for name in metrics]
            cells = [cell_text(cell, ".4g") for cell in values]
            name = label if row["scores"] == "learned" else f"{label}, {row['scores']} scores"
            lines.append([name, f"{row['guidance_weight']:g}", f"{scale:g}", *cost, *cells])
    return aligned(lines, right=True)
