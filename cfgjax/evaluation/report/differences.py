"""The differences of the settings of a frontier from their baseline, as a table and as a figure."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from cfgjax.base.cells import aligned
from cfgjax.base.plots_extra import Figure
from cfgjax.evaluation.report.frontier_rows import Row, curves, shown_names, strength, strength_name
from cfgjax.evaluation.report.protocol import caption

MAX_PANELS, PANELS_PER_ROW = 9, 3


def mean_change(rows: Sequence[Row], name: str) -> tuple[float, float]:
    """Returns (mean change of a metric over the seeds, half the width of its 95 % interval)."""
    widths = [row[f"{name}_change_interval"] for row in rows]
    return float(np.mean([row[f"{name}_change"] for row in rows])), math.hypot(*widths) / len(rows)


def changed_names(rows: Sequence[Row]) -> list[str]:
    """Returns the names of the metrics of which all rows, at least two, have the difference from their baseline."""
    if len(rows) < 2:
        return []
    return [name for name in shown_names(rows) if all(f"{name}_change" in row for row in rows)]


def change_text(rows: Sequence[Row], name: str) -> str:
    """Returns `mean_change` as text."""
    change, width = mean_change(rows, name)
    return f"{change:+.4g} ± {width:.2g}"


def baseline_text(rows: Sequence[Row]) -> str:
    """Returns the baselines of rows as text, usually one."""
    return " or ".join(dict.fromkeys(row["baseline"] for row in rows))


def differences_title(rows: Sequence[Row]) -> str:
    """Returns the line above a table of differences."""
    pairs = "± half of the 95 % interval (pairs of samples with the same noise and label)"
    return f"difference from {baseline_text(rows)}, {pairs}:"


def difference_table(rows: Sequence[Row]) -> list[str]:
    """Returns a table of the differences from the baseline, each ± half of its 95 % interval; [] if there are none."""
    names = changed_names(rows)
    if not names:
        return []
    lines = [["w" if strength(rows) == "guidance_weight" else "scale", *names]]
    titles: dict[int, str] = {}
    for curve, by_weight in curves(rows).items():
        if curve:
            titles[len(lines)] = curve
        for w, same in by_weight.items():
            lines.append([f"{w:g}", *(change_text(same, name) for name in names)])
    result = [differences_title(rows)]
    for i, line in enumerate(aligned(lines, right=True)):
        result += [f"{titles[i]}:", line] if i in titles else [line]
    return result


def difference_figure(rows: Sequence[Row], card: Mapping[str, str] | None = None) -> Figure:
    """Returns a matplotlib Figure with the difference of each metric from the baseline, and its interval, against w.

    card: the `protocol` for the caption.
    """
    from matplotlib.figure import Figure

    names = changed_names(rows)[:MAX_PANELS]
    columns = min(len(names), PANELS_PER_ROW)
    lines = -(-len(names) // columns)
    for_legend = 3.2 * any(curves(rows))
    drawn = Figure(figsize=(3.9 * columns + for_legend, 2.9 * lines + 0.5), layout="constrained")
    axes = np.ravel(drawn.subplots(lines, columns))
    for axis, name in zip(axes, names, strict=False):
        for i, (curve, by_weight) in enumerate(curves(rows).items()):
            change, width = np.array([mean_change(same, name) for same in by_weight.values()]).T
            style = {"marker": "o", "markersize": 3, "linewidth": 1, "capsize": 2, "color": f"C{i}"}
            axis.errorbar(list(by_weight), change, yerr=width, label=curve or None, **style)
        axis.axhline(0, color="0.6", linewidth=0.8, zorder=0)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel(strength_name(rows), fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    drawn.supxlabel(caption(card or {}, drawn.get_figwidth()), fontsize=6, color="0.35")
    if any(curves(rows)):
        drawn.legend(*axes[0].get_legend_handles_labels(), fontsize=7, loc="outside right center")
    drawn.suptitle(f"difference from {baseline_text(rows)}, with 95 % intervals over pairs of samples", fontsize=10)
    return drawn
