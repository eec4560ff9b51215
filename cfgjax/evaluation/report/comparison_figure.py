"""The curves of several runs, and published rows, in one picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cfgjax.base.cells import text
from cfgjax.base.plots_extra import Figure, require_matplotlib
from cfgjax.evaluation.report.comparison import ComparedRun, Group
from cfgjax.evaluation.report.protocol import caption, merged_protocol
from cfgjax.evaluation.report.targets import PUBLISHED_METRICS, SETTINGS, Targets

Axes = Any
Points = dict[float, list[tuple[float, float]]]  # {w: [(x, its standard deviation), (y, its standard deviation)]}

COVERAGE = ("recall", "precision")
GREYS = ("0.25", "0.5", "0.7")  # of published rows
LABEL_PIXELS = (22, 12)  # width and height of a label


def comparison_figure(runs: Sequence[ComparedRun], targets: Targets | None = None) -> Figure:
    """Returns a matplotlib Figure of the curves of runs: IS against FD, and precision against recall.

    The points are labelled with w if there is room. Each feature network has its own axes for distances.
    targets: published rows, drawn as crosses.
    """
    require_matplotlib("--plot needs")
    from matplotlib.figure import Figure

    curves = [curve.own for run in runs for curve in run.curves]
    pairs = axes_of(curves)
    if ("FID", "IS") not in pairs:
        targets = None  # distances of different features are not comparable
    drawn = Figure(figsize=(5.8 * len(pairs), 4.8), layout="constrained")
    axes = list(np.ravel(drawn.subplots(1, len(pairs))))
    for axis, pair in zip(axes, pairs, strict=True):
        for i, curve in enumerate(curves):
            if all(name in curve.cells for name in pair):
                draw_points(axis, points_of(curve, pair), curve.label, marker="o", linewidth=1, color=f"C{i}")
        for i, (label, points) in enumerate(published_curves(targets, pair).items() if targets else ()):
            draw_points(axis, points, label, marker="x", linestyle="none", color=GREYS[i % len(GREYS)], zorder=1)
        set_scales(axis, pair)
    handles, labels = axes[0].get_legend_handles_labels()
    about = caption(merged_protocol({run.label: run.card for run in runs}), drawn.get_figwidth())
    add_legend(drawn, handles, labels, about, columns=min(3, len(labels)))
    drawn.suptitle("guidance weight w at the points", fontsize=10)
    drawn.draw_without_rendering()  # computes the layout that the labels must fit into
    for axis, pair in zip(axes, pairs, strict=True):
        taken: list = []
        for i, curve in enumerate(curves):
            if all(name in curve.cells for name in pair):
                label_points(axis, points_of(curve, pair), f"C{i}", taken)
    return drawn


def add_legend(drawn: Figure, handles: Sequence[Any], labels: Sequence[str], about: str, columns: int) -> None:
    """Adds a legend below the axes, unless there is one curve, and the caption about, which an x label would hide."""
    if len(labels) < 2:
        drawn.supxlabel(about, fontsize=6, color="0.35")
        return
    legend = drawn.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=columns, title=about)
    legend.get_title().set(fontsize=6, color="0.35", multialignment="center")


def axes_of(curves: Sequence[Group]) -> list[tuple[str, str]]:
    """Returns the pairs of metrics that any curve has: (FD, IS) of each feature network, then (recall, precision)."""
    pairs: list[tuple[str, str]] = []
    for curve in curves:
        distances = [name for name in curve.cells if name == "FID" or name.startswith("FD-")]
        scores = [name for name in curve.cells if name == "IS" or name.startswith("IS-")]
        pairs += [pair for pair in zip(distances[:1], scores[:1], strict=False) if pair not in pairs]
    return pairs + [COVERAGE] * any(set(COVERAGE) <= curve.cells.keys() for curve in curves)


def points_of(curve: Group, pair: tuple[str, str]) -> Points:
    """Returns the points of a curve that has both metrics, in order of w."""
    x, y = (curve.cells[name] for name in pair)
    return {w: [x[w][:2], y[w][:2]] for w in sorted(x.keys() & y.keys())}


def published_curves(targets: Targets, pair: tuple[str, str]) -> dict[str, Points]:
    """Returns {label: points} of the published rows that have both metrics, with a label for each setting."""
    keys = [next((key for key, name in PUBLISHED_METRICS.items() if name == wanted), None) for wanted in pair]
    result: dict[str, Points] = {}
    for row in targets["rows"]:
        if "w" in row and all(key in row for key in keys):
            own = [f"{name}={text(row[name])}" for name in SETTINGS if name in row]
            points = result.setdefault(", ".join([targets["name"], *own]), {})
            points[row["w"]] = [(row[key], 0.0) for key in keys]
    return result


def draw_points(axis: Axes, points: Points, label: str, **style: Any) -> None:
    """Draws points, with error bars if there are several seeds."""
    (x, x_std), (y, y_std) = np.moveaxis(np.array(list(points.values())), 0, -1)
    bars = {"xerr": x_std, "yerr": y_std} if x_std.any() or y_std.any() else {}
    axis.errorbar(x, y, **bars, markersize=4, capsize=2, label=label, **style)


def set_scales(axis: Axes, pair: tuple[str, str]) -> None:
    """Labels the axes, and makes that of a distance logarithmic if it spans more than a decade."""
    x = np.concatenate([drawn.lines[0].get_xdata() for drawn in axis.containers])  # without the ends of error bars
    smallest, largest = x.min(), x.max()
    if pair != COVERAGE and 0 < 10 * smallest < largest:
        axis.set_xscale("log")
        if largest < 1000 * smallest:
            axis.set_xticks([m * 10.0**n for n in range(-6, 7) for m in (1, 2, 5)], minor=False)
            axis.set_xticks([], minor=True)
            axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlim(smallest / 1.3, largest * 1.3)
    axis.set_xlabel(pair[0])
    axis.set_ylabel(pair[1])
    axis.grid(alpha=0.3)
    axis.margins(0.1)


def label_points(axis: Axes, points: Points, colour: str, taken: list[np.ndarray]) -> None:
    """Labels points with w, the ends first, without overlaps with the labels at `taken`, to which it appends."""
    weights = list(points)
    for w in dict.fromkeys([weights[0], weights[-1], *weights]):
        (x, _), (y, _) = points[w]
        at = axis.transData.transform((x, y))
        width, height = LABEL_PIXELS
        if all(abs(at[0] - other[0]) > width or abs(at[1] - other[1]) > height for other in taken):
            taken.append(at)
            axis.annotate(f"{w:g}", (x, y), xytext=(4, 5), textcoords="offset points", fontsize=7, color=colour)
