"""The curves of a frontier as a figure."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from cfgjax.base.plots_extra import Figure, require_matplotlib
from cfgjax.evaluation.report.frontier_rows import Row, curves, spread, spread_note, strength, strength_name
from cfgjax.evaluation.report.frontier_table import MetricNames
from cfgjax.evaluation.report.protocol import caption

LABEL_DISTANCE = (13, 10)  # of w from its point, across and up, in points of the page
LABEL_STYLE = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": 8}


def frontier_figure(
    rows: Sequence[Row],
    network: MetricNames,
    tilted: Sequence[dict[str, float]] = (),
    card: Mapping[str, str] | None = None,
) -> Figure:
    """Returns a matplotlib Figure of all curves, labelled with w: IS against FD, and precision against recall.

    For points of a known mixture: mean log p(c|x) against entropy, and against recall.
    Error bars are those of `spread`. tilted: the points of `tilted_frontier`, drawn as another curve. card: the
    `protocol` for the caption.
    """
    require_matplotlib("frontier.png needs")
    from matplotlib.figure import Figure

    scores = (network.metric("FD"), network.metric("IS"))
    axes_of = [scores, ("recall", "precision")]
    if network.points:
        axes_of = [("entropy", "log_posterior"), ("recall", "log_posterior")]
    labels = {"entropy": "entropy of the samples (nats)", "log_posterior": "mean log p(c|x) (nats)"}
    axes_of = [pair for pair in axes_of if all(name in rows[0] for name in pair)] or [scores]
    drawn = Figure(figsize=(5.2 * len(axes_of), 4.4), layout="constrained")
    for axis, pair in zip(np.ravel(drawn.subplots(1, len(axes_of))), axes_of, strict=True):
        drawn_points = []  # (weights, places) of each curve
        for curve, by_weight in curves(rows).items():
            points = [[spread(by_weight[w], name) for w in by_weight] for name in pair]
            (x, x_std), (y, y_std) = (np.array(p).T for p in points)
            bars = {"xerr": x_std, "yerr": y_std} if x_std.any() or y_std.any() else {}
            axis.errorbar(x, y, **bars, marker="o", markersize=4, linewidth=1, capsize=2, label=curve or None)
            drawn_points.append((list(by_weight), np.stack([x, y], axis=1)))
            if pair[0] == network.metric("FD") and x.min() > 0 and x.max() > 10 * x.min():
                axis.set_xscale("log")
        if tilted and pair[0] == "entropy":
            along = [[point[name] for point in tilted] for name in pair]
            axis.plot(*along, "x--", color="gray", markersize=4, linewidth=1, label="p(x|c) p(c|x)^w, closed form")
        if pair[1] == "log_posterior":
            axis.set_yscale("symlog", linthresh=1e-3)  # values range from half a nat to a thousandth
        axis.set_xlabel(labels.get(pair[0], pair[0]))
        axis.set_ylabel(labels.get(pair[1], pair[1]))
        axis.grid(alpha=0.3)
        axis.margins(0.1)
        axis.autoscale_view()  # labels depend on where the points are on the page
        for weights, places in drawn_points:
            for w, at, offset in zip(weights, places, label_offsets(axis.transData.transform(places)), strict=True):
                axis.annotate(f"{w:g}", at, xytext=offset, **LABEL_STYLE)
        if any(curves(rows)):
            axis.legend(fontsize=8)
    title = "guidance weight w" if strength(rows) == "guidance_weight" else strength_name(rows)
    note = spread_note(rows)
    drawn.suptitle(f"{title}, {rows[0]['num_samples']:,} samples each{'; ' * bool(note)}{note}", fontsize=10)
    drawn.supxlabel(caption(card or {}, drawn.get_figwidth()), fontsize=6, color="0.35")
    return drawn


def label_offsets(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """Returns the offset of the label of each point of a curve, in points of the page: on the outer side of its angle.

    Where the curve is almost straight, the label is above it.
    """
    steps = np.diff(points, axis=0)
    steps /= np.maximum(np.linalg.norm(steps, axis=1, keepdims=True), 1e-12)
    to_next, to_last = np.vstack([steps, np.zeros((1, 2))]), np.vstack([np.zeros((1, 2)), -steps])
    outer, along = -(to_next + to_last), to_next - to_last
    above = np.where(along[:, :1] < 0, -1, 1) * np.stack([-along[:, 1], along[:, 0]], axis=1) + [0, 1e-6]
    direction = np.where(np.linalg.norm(outer, axis=1, keepdims=True) < 0.5, above, outer)
    return np.array(LABEL_DISTANCE) * direction / np.linalg.norm(direction, axis=1, keepdims=True)
