"""The results of an evaluation as lines and tables of text."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from cfgjax.base.cells import cell_text
from cfgjax.evaluation.report.frontier_rows import Row, curves, shown_names, spread, strength, strength_name

MAX_CLASSES = 20  # of the table per class on the terminal


@runtime_checkable
class MetricNames(Protocol):
    """The part of a `FeatureNetwork` that a report needs."""

    points: bool

    def metric(self, kind: str) -> str:
        """Returns the name of a metric of this network."""


def line(rows: Sequence[Row]) -> str:
    """Returns the line that reports the last row."""
    row = rows[-1]
    names = shown_names(rows)
    where = f"w = {row['guidance_weight']:g}, T = {row['num_steps']}, seed {row['seed']}, {row['scores']} scores"
    where += f", {row['rule']}, {row['sampler']}"
    if row.get("classifier"):
        where += f", classifier scale {row['classifier_scale']:g}"
    return f"{where}: " + "  ".join(f"{name} {row[name]:.4g}" for name in names)


def frontier_cells(rows: Sequence[Row]) -> list[list[str]]:
    """Returns the cells of `frontier_table`: a header, lines of as many cells, and titles of curves, of one cell."""
    names = shown_names(rows)
    by_w = strength(rows) == "guidance_weight"
    lines = [[*(("w", "s") if by_w else ("scale",)), *names]]
    for curve, by_weight in curves(rows).items():
        if curve:
            lines.append([curve])
        for w, same in by_weight.items():
            cells = [cell_text((*spread(same, name), len(same)), ".4g") for name in names]
            lines.append([*((f"{w:g}", f"{1 + w:g}") if by_w else (f"{w:g}",)), *cells])
    return lines


def frontier_table(rows: Sequence[Row]) -> list[str]:
    """Returns a table with a line for each w of each curve: mean ± standard deviation if there are several seeds."""
    lines = frontier_cells(rows)
    columns = len(lines[0])
    widths = [max(len(line[i]) for line in lines if len(line) == columns) for i in range(columns)]
    row = lambda line: "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
    return [row(line) if len(line) == columns else f"{line[0]}:" for line in lines]


def per_class_lines(rows: Sequence[Row]) -> list[str]:
    """Returns a table of class accuracies in percent, means over seeds; [] for none or more than MAX_CLASSES."""
    if not 0 < len(rows[0].get("accuracy_per_class", ())) <= MAX_CLASSES:
        return []
    percent = lambda values: "    -" if None in values else f"{100 * np.mean(values):5.1f}"
    head = "     w  " if strength(rows) == "guidance_weight" else " scale  "
    lines = [
        "accuracy of each class, %:",
        head + " ".join(f"{c:5}" for c in range(len(rows[0]["accuracy_per_class"]))),
    ]
    for curve, by_weight in curves(rows).items():
        lines += [f"{curve}:"] if curve else []
        for w, same in by_weight.items():
            classes = zip(*(row["accuracy_per_class"] for row in same), strict=True)
            lines.append(f"{w:6g}  " + " ".join(map(percent, classes)))
    return lines


def tilted_lines(tilted: Sequence[dict[str, float]]) -> list[str]:
    """Returns a table of the points of `tilted_frontier`; [] if there are none."""
    line = "w = {guidance_weight:g}: entropy {entropy:.4g}  log_posterior {log_posterior:.4g}".format_map
    return ["closed form, p(x|c) p(c|x)^w:", *map(line, tilted)] if tilted else []


def findings(rows: Sequence[Row], network: MetricNames) -> list[str]:
    """Returns lines with the minimum of each curve's distance, and a remark if it is at an end of the curve."""
    name, lines, what = network.metric("FD"), [], strength_name(rows)
    for curve, by_weight in curves(rows).items():
        weights = sorted(by_weight)
        means = [spread(by_weight[w], name)[0] for w in weights]
        best = int(np.argmin(means))
        end = ""
        if len(weights) > 1 and best in (0, len(weights) - 1):
            side = "smaller" if best == 0 else "larger"
            end = f", the {'first' if best == 0 else 'last'} of the list: a {side} one may be even better"
        where = f"{name} is smallest at {what} = {weights[best]:g}"
        lines.append(f"{curve + ': ' if curve else ''}{where}, {means[best]:.4g}{end}")
    return lines
