"""Metrics of several runs against the network evaluations of a sample."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cfgjax.base.cells import text
from cfgjax.base.errors import UsageError
from cfgjax.base.plots_extra import Figure, require_matplotlib
from cfgjax.evaluation.report.by_row import by_setting, calls
from cfgjax.evaluation.report.comparison_figure import add_legend
from cfgjax.evaluation.report.frontier_rows import Row, setting_keys, shown_names, spread, varying_keys
from cfgjax.evaluation.report.protocol import caption

CostCurves = dict[str, list[tuple[int, list[Row]]]]  # {label: [(network evaluations, rows of all seeds)]}

PANELS = ("FD", "IS", "precision", "recall")  # beginnings of the metrics that are drawn
ANNOTATED = 12  # points of a curve whose weights are written next to them


def cost_curves(label: str, rows: Sequence[Row]) -> CostCurves:
    """Returns the curves of a run: along T for each w if T varies, otherwise along w."""
    along = "num_steps" if len({str(row["num_steps"]) for row in rows}) > 1 else "guidance_weight"
    keys = [key for key in ("guidance_weight", *varying_keys()) if key != along]
    several = [key for key in keys if len({text(row.get(key)) for row in rows}) > 1]
    result: CostCurves = {}
    for found in by_setting(rows, ("guidance_weight", *setting_keys())):
        cost, _ = calls(found[0], False)
        if cost is None:
            continue
        named = {"guidance_weight": "w"}
        parts = [f"{named.get(key, key)}={text(found[0].get(key))}" for key in several]
        result.setdefault(": ".join(filter(None, [label, ", ".join(parts)])), []).append((cost, found))
    return {name: sorted(points, key=lambda point: point[0]) for name, points in result.items()}


def cost_figure(records: Mapping[str, Mapping[str, Any]], card: Mapping[str, str] | None = None) -> Figure:
    """Returns a matplotlib Figure of FD, IS, precision and recall against network evaluations, with their intervals.

    records: {label: content of a frontier.json}. card: the `protocol` for the caption. Raises UsageError if no row
    has a known number of evaluations.
    """
    require_matplotlib("--plot needs")
    from matplotlib.figure import Figure

    curves = {k: v for label, record in records.items() for k, v in cost_curves(label, record["rows"]).items()}
    if not curves:
        raise UsageError("no setting has a known number of network evaluations; evaluate the runs again")
    names = [name for points in curves.values() for name in drawn_metrics(points[0][1][0])]
    names = list(dict.fromkeys(names))
    columns = min(2, len(names))
    lines = -(-len(names) // columns)
    drawn = Figure(figsize=(5.2 * columns, 3.6 * lines + 0.6), layout="constrained")
    axes = np.ravel(drawn.subplots(lines, columns))
    for axis, name in zip(axes, names, strict=False):
        for i, (label, points) in enumerate(curves.items()):
            known = [(cost, rows) for cost, rows in points if name in rows[0]]
            if not known:
                continue
            y, width = np.array([spread(rows, name) for _, rows in known]).T
            style = {"marker": "o", "markersize": 4, "linewidth": 1, "capsize": 2, "color": f"C{i}"}
            axis.errorbar([cost for cost, _ in known], y, yerr=width if width.any() else None, label=label, **style)
            weights = [row[0]["guidance_weight"] for _, row in known]
            if len(set(weights)) > 1 and len(weights) <= ANNOTATED:
                for (cost, _), at, w in zip(known, y, weights, strict=True):
                    axis.annotate(f"{w:g}", (cost, at), xytext=(4, 3), textcoords="offset points", fontsize=7)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlabel("network evaluations per sample")
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
        values = [spread(rows, name)[0] for points in curves.values() for _, rows in points if name in rows[0]]
        if name.startswith("F") and 0 < 10 * min(values) < max(values):
            axis.set_yscale("log")
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    add_legend(drawn, *drawn.axes[0].get_legend_handles_labels(), caption(card or {}, drawn.get_figwidth()), columns=2)
    return drawn


def drawn_metrics(row: Row) -> list[str]:
    """Returns the names of the metrics of a row that are drawn, in the order of PANELS."""
    wanted = {"FD": ("FID", "FD-"), "IS": ("IS", "IS-"), "precision": ("precision",), "recall": ("recall",)}
    matches = lambda name, ways: any(name == way or (way.endswith("-") and name.startswith(way)) for way in ways)
    return [name for panel in PANELS for name in shown_names([row]) if matches(name, wanted[panel])]
