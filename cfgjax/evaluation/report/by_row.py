"""Settings of several runs in one table, a line each, with what they cost."""

from cfgjax.base.cells import aligned, cell_text
from cfgjax.evaluation.report import files as report


def rows_table(records):
    """The lines of a table of {label: frontier.json's content}: a setting each, with what it costs and what was found.

    calls: of the diffusion network for one sample; gradients: of the classifier that guides.
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
            found = [(*report.spread(rows, name), len(rows)) if name in row else None for name in metrics]
            cells = [cell_text(cell, ".4g") for cell in found]
            name = label if row["scores"] == "learned" else f"{label}, {row['scores']} scores"
            lines.append([name, f"{row['guidance_weight']:g}", f"{scale:g}", *cost, *cells])
    return aligned(lines, right=True)
