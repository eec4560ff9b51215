"""The results of an evaluation as a table, frontier.csv, frontier.json, per_class.csv and frontier.png."""

import csv
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from cfgjax.base.files import writing
from cfgjax.base.json_files import HASH, content_hash, write_json
from cfgjax.evaluation.report.plots_extra import Figure, require_matplotlib
from cfgjax.runs.sample_options import fields

Row = dict[str, Any]  # {setting or metric: value} of one frontier

LABEL_OFFSETS = ((4, 5), (4, -11))  # of w from its point; they alternate so that neighbours do not overlap
MAX_CLASSES = 20  # of the table per class on the terminal
DETAIL = ("_std", "_10")  # endings of metrics that appear only in the files


def varying_keys() -> tuple[str, ...]:
    """Returns the keys of a row that may vary within one frontier, besides its weight and seed."""
    return ("scores", *(name for name in reversed(fields()) if name not in ("guidance", "seed")))


def setting_keys() -> tuple[str, ...]:
    """Returns the keys of a row that are the same along a curve, unless one of them takes the place of w."""
    return (*varying_keys(), "classifier", "weak", "num_samples")


@runtime_checkable
class MetricNames(Protocol):
    """The part of a `FeatureNetwork` that a report needs."""

    points: bool

    def metric(self, kind: str) -> str:
        """Returns the name of a metric of this network."""


def metric_names(rows: Sequence[Row]) -> list[str]:
    """Returns the names of the scalar metrics of the rows, in order."""
    settings = (*setting_keys(), "guidance_weight", "seed")
    return [name for name, value in rows[0].items() if name not in settings and not isinstance(value, list)]


def shown_names(rows: Sequence[Row]) -> list[str]:
    """Returns the names of the metrics in lines and tables."""
    return [name for name in metric_names(rows) if not name.endswith(DETAIL)]


def strength(rows: Sequence[Row]) -> str:
    """Returns the key that varies along a curve: the classifier's scale if it varies and w does not, otherwise w."""
    several = lambda name: len({row.get(name) for row in rows}) > 1
    scales = several("classifier_scale") and not several("guidance_weight")
    return "classifier_scale" if scales else "guidance_weight"


def strength_name(rows: Sequence[Row]) -> str:
    """Returns a short name of `strength`."""
    return "w" if strength(rows) == "guidance_weight" else "scale of the classifier's gradient"


def curves(rows: Sequence[Row], along: str | None = None) -> dict[str, dict[float, list[Row]]]:
    """Returns {name: {w: [rows of all seeds]}} of the curves, in order of w. A curve's rows differ only in w and seed.

    along: the key that takes the place of w, by default `strength`.
    """
    along = along or strength(rows)
    several = [key for key in varying_keys() if key != along and len({row.get(key) for row in rows}) > 1]
    number = lambda value: f"{value:g}" if isinstance(value, float) else str(value)
    result: dict[str, dict[float, list[Row]]] = {}
    for row in sorted(rows, key=lambda row: row[along]):
        name = ", ".join(f"{row[key]}" if key == "scores" else f"{key}={number(row[key])}" for key in several)
        result.setdefault(name, {}).setdefault(row[along], []).append(row)
    return result


def spread(rows: Sequence[Row], name: str) -> tuple[float, float]:
    """Returns (mean, standard deviation with n − 1) of a metric over the seeds; the deviation is 0 for one seed."""
    values = [row[name] for row in rows]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def line(rows: Sequence[Row]) -> str:
    """Returns the line that reports the last row."""
    row = rows[-1]
    names = shown_names(rows)
    where = f"w = {row['guidance_weight']:g}, T = {row['num_steps']}, seed {row['seed']}, {row['scores']} scores"
    where += f", {row['rule']}, {row['sampler']}"
    if row.get("classifier"):
        where += f", classifier scale {row['classifier_scale']:g}"
    return f"{where}: " + "  ".join(f"{name} {row[name]:.4g}" for name in names)


def frontier_table(rows: Sequence[Row]) -> list[str]:
    """Returns a table with a line for each w of each curve: mean ± standard deviation if there are several seeds."""
    names = shown_names(rows)
    by_w = strength(rows) == "guidance_weight"
    lines = [[*(("w", "s") if by_w else ("scale",)), *names]]
    for curve, by_weight in curves(rows).items():
        if curve:
            lines.append([curve])
        for w, same in by_weight.items():
            cells = [f"{mean:.4g}" + (f" ± {std:.2g}" if len(same) > 1 else "")
                     for mean, std in (spread(same, name) for name in names)]  # fmt: skip
            lines.append([*((f"{w:g}", f"{1 + w:g}") if by_w else (f"{w:g}",)), *cells])
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


def frontier_csv(rows: Sequence[Row]) -> str:
    """Returns the text of frontier.csv, with a line for each row."""
    head = ["guidance_weight", "scale", *setting_keys(), "seed", *metric_names(rows)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        full = {**row, "scale": 1 + row["guidance_weight"]}
        writer.writerow(["" if full.get(name) is None else full[name] for name in head])
    return out.getvalue()


def per_class_text(rows: Sequence[Row]) -> str:
    """Returns the text of per_class.csv, accuracies with a line for each class and a column for each row."""
    varying = [key for key in (*varying_keys(), "seed") if len({row.get(key) for row in rows}) > 1]
    names = [" ".join([f"w={row['guidance_weight']:g}", *[f"{key}={row[key]}" for key in varying]]) for row in rows]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["class", *names])
    for c, values in enumerate(zip(*(row["accuracy_per_class"] for row in rows), strict=True)):
        writer.writerow([c, *["" if value is None else f"{value:.6g}" for value in values]])
    return out.getvalue()


def frontier_figure(rows: Sequence[Row], network: MetricNames, tilted: Sequence[dict[str, float]] = ()) -> Figure:
    """Returns a matplotlib Figure of all curves, labelled with w: IS against FD, and precision against recall.

    For points of a known mixture: mean log p(c|x) against entropy, and against recall.
    tilted: the points of `tilted_frontier`, drawn as another curve.
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
        for curve, by_weight in curves(rows).items():
            points = [[spread(by_weight[w], name) for w in by_weight] for name in pair]
            (x, x_std), (y, y_std) = (np.array(p).T for p in points)
            bars = {"xerr": x_std, "yerr": y_std} if x_std.any() or y_std.any() else {}
            axis.errorbar(x, y, **bars, marker="o", markersize=4, linewidth=1, capsize=2, label=curve or None)
            for w, at, offset in zip(by_weight, zip(x, y, strict=True), itertools.cycle(LABEL_OFFSETS), strict=False):
                axis.annotate(f"{w:g}", at, xytext=offset, textcoords="offset points", fontsize=8)
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
        if any(curves(rows)):
            axis.legend(fontsize=8)
    title = "guidance weight w" if strength(rows) == "guidance_weight" else strength_name(rows)
    drawn.suptitle(f"{title}, {rows[0]['num_samples']:,} samples each", fontsize=10)
    return drawn


def write(
    folder: Path,
    rows: Sequence[Row],
    record: dict[str, Any],
    network: MetricNames,
    tilted: Sequence[dict[str, float]] = (),
) -> list[str]:
    """Writes frontier.json (record and rows), frontier.csv, frontier.png, per_class.csv, each atomically.

    tilted: see `frontier_figure`. Returns the names of the files.
    """
    content = {**record, "rows": rows}
    content[HASH] = content_hash(content)  # without `tilted`, which follows from the config
    texts = {"frontier.csv": frontier_csv(rows)}
    if "accuracy_per_class" in rows[0]:
        texts["per_class.csv"] = per_class_text(rows)
    write_texts(folder, texts)
    write_json(folder / "frontier.json", content | ({"tilted": tilted} if tilted else {}), indent=1)
    with writing(folder / "frontier.png") as new:
        frontier_figure(rows, network, tilted).savefig(new, dpi=130, metadata={"Software": None})
    return ["frontier.json", *texts, "frontier.png"]


def bits_lines(found: dict[str, Any]) -> list[str]:
    """Returns the result of `held_out_bits` in a few lines."""
    error = "" if found["standard_error"] is None else f" ± {found['standard_error']:.4f}"
    v = "learned variance" if found["learned_variance"] else f"v = {found['v']:g}"
    return [
        f"{found['bits_per_dim']:.4f}{error} bits/dim (at most) on {found['num_examples']:,} "
        f"held-out examples; T = {found['num_steps']}, {v}, {found['spacing']} λ up to {found['logsnr'][-1]:g}",
        f"prior {found['prior']:.6f}, transitions {found['transitions']:.4f}, decoder {found['decoder']:.4f}",
    ]


def write_bits(folder: Path, found: dict[str, Any]) -> list[str]:
    """Writes bits_per_dim.json, and bits_per_dim.csv with the term of each λ. Returns their names."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["logsnr", "term", "bits_per_dim"])
    writer.writerow([found["logsnr"][0], "prior", found["prior"]])
    kinds = ["transition"] * (found["num_steps"] - 1) + ["decoder"]
    writer.writerows(zip(found["logsnr"], kinds, found["terms"], strict=True))
    write_texts(folder, {"bits_per_dim.csv": out.getvalue()})
    write_json(folder / "bits_per_dim.json", found, indent=1)
    return ["bits_per_dim.json", "bits_per_dim.csv"]


def write_texts(folder: Path, texts: dict[str, str]) -> None:
    """Writes {name: text} into a folder, created if missing, each file atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        with writing(folder / name) as new:
            new.write_text(text)
