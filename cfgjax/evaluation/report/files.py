"""What an evaluation found, as a table, frontier.csv, frontier.json, per_class.csv and frontier.png."""

import csv
import io
import itertools

import numpy as np

from cfgjax.base.files import writing
from cfgjax.base.json_files import HASH, content_hash, write_json
from cfgjax.evaluation.report.plots_extra import require_matplotlib

KEYS = (  # of a curve
    *("scores", "ema", "num_steps", "sampler", "v", "eta", "label_policy", "num_samples"),
    *("classifier", "classifier_scale", "classifier_form"),
)
VARYING = ("scores", "ema", "num_steps", "v", "classifier_scale")  # those that one frontier can have several of
LABEL_OFFSETS = ((4, 5), (4, -11))  # of w from its point, in turn, so that neighbours do not hide each other
MOST_CLASSES = 20  # of the table per class on the terminal
DETAIL = ("_std", "_10")  # endings of metrics that only the files have


def metric_names(rows):
    """The scalar metrics that a row has, in order."""
    settings = (*KEYS, "guidance_weight", "seed")
    return [name for name, value in rows[0].items() if name not in settings and not isinstance(value, list)]


def shown_names(rows):
    """The metrics that lines and tables have."""
    return [name for name in metric_names(rows) if not name.endswith(DETAIL)]


def strength(rows):
    """What the points of a curve are told apart by: the classifier's scale where that varies and w does not, else w."""
    several = lambda name: len({row.get(name) for row in rows}) > 1
    scales = several("classifier_scale") and not several("guidance_weight")
    return "classifier_scale" if scales else "guidance_weight"


def strength_name(rows):
    """`strength` in short."""
    return "w" if strength(rows) == "guidance_weight" else "scale of the classifier's gradient"


def curves(rows, along=None):
    """{name: {w: [rows of all seeds]}}, w increasing: rows apart in nothing but w and seed make a curve.

    along: "guidance_weight", or what takes the place of w; by default `strength`.
    """
    along = along or strength(rows)
    several = [key for key in VARYING if key != along and len({row.get(key) for row in rows}) > 1]
    number = lambda value: f"{value:g}" if isinstance(value, float) else str(value)
    found: dict = {}
    for row in sorted(rows, key=lambda row: row[along]):
        name = ", ".join(f"{row[key]}" if key == "scores" else f"{key}={number(row[key])}" for key in several)
        found.setdefault(name, {}).setdefault(row[along], []).append(row)
    return found


def spread(rows, name):
    """(mean, standard deviation over the seeds, with n − 1, 0 for one) of a metric."""
    values = [row[name] for row in rows]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def line(rows):
    """What is told of the last of the rows as soon as it is known."""
    row = rows[-1]
    names = shown_names(rows)
    where = f"w = {row['guidance_weight']:g}, T = {row['num_steps']}, seed {row['seed']}, {row['scores']} scores"
    if row.get("classifier"):
        where += f", classifier scale {row['classifier_scale']:g}"
    return f"{where}: " + "  ".join(f"{name} {row[name]:.4g}" for name in names)


def table(rows):
    """The lines of a table, one for each w of each curve: mean ± standard deviation where there are several seeds."""
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


def per_class_lines(rows):
    """The lines of a table of class accuracies in percent, means over seeds; none for many classes, or without any."""
    if not 0 < len(rows[0].get("accuracy_per_class", ())) <= MOST_CLASSES:
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


def tilted_lines(tilted):
    """The lines of a table of `tilted_frontier`'s; none where there is nothing."""
    line = "w = {guidance_weight:g}: entropy {entropy:.4g}  log_posterior {log_posterior:.4g}".format_map
    return ["closed form, p(x|c) p(c|x)^w:", *map(line, tilted)] if tilted else []


def findings(rows, network):
    """Lines that say where each curve's distance is least, and where that is an end of the list, what that means."""
    name, lines, what = network.metric("FD"), [], strength_name(rows)
    for curve, by_weight in curves(rows).items():
        weights = sorted(by_weight)
        means = [spread(by_weight[w], name)[0] for w in weights]
        best = int(np.argmin(means))
        end = ""
        if len(weights) > 1 and best in (0, len(weights) - 1):
            side = "smaller" if best == 0 else "larger"
            end = f", the {'first' if best == 0 else 'last'} of the list: a {side} one may be better still"
        where = f"{name} is least at {what} = {weights[best]:g}"
        lines.append(f"{curve + ': ' if curve else ''}{where}, {means[best]:.4g}{end}")
    return lines


def csv_text(rows):
    """frontier.csv: a line for each row."""
    head = ["guidance_weight", "scale", *KEYS, "seed", *metric_names(rows)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        full = {**row, "scale": 1 + row["guidance_weight"]}
        writer.writerow(["" if full.get(name) is None else full[name] for name in head])
    return out.getvalue()


def per_class_text(rows):
    """per_class.csv: the accuracy of each class, a line each, for every row of the frontier, a column each."""
    varying = [key for key in (*VARYING, "seed") if len({row.get(key) for row in rows}) > 1]
    names = [" ".join([f"w={row['guidance_weight']:g}", *[f"{key}={row[key]}" for key in varying]]) for row in rows]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["class", *names])
    for c, values in enumerate(zip(*(row["accuracy_per_class"] for row in rows), strict=True)):
        writer.writerow([c, *["" if value is None else f"{value:.6g}" for value in values]])
    return out.getvalue()


def figure(rows, network, tilted=()):
    """A matplotlib Figure: IS against FD and precision against recall, w at the points, a line for each curve.

    For points of a known mixture: mean log p(c|x) against entropy, and against recall, its coverage.
    tilted: `tilted_frontier`'s, drawn beside them.
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
            axis.set_yscale("symlog", linthresh=1e-3)  # from half of a nat to a thousandth of one
        axis.set_xlabel(labels.get(pair[0], pair[0]))
        axis.set_ylabel(labels.get(pair[1], pair[1]))
        axis.grid(alpha=0.3)
        axis.margins(0.1)
        if any(curves(rows)):
            axis.legend(fontsize=8)
    title = "guidance weight w" if strength(rows) == "guidance_weight" else strength_name(rows)
    drawn.suptitle(f"{title}, {rows[0]['num_samples']:,} samples each", fontsize=10)
    return drawn


def write(folder, rows, record, network, tilted=()):
    """Writes frontier.json (record and rows), frontier.csv, frontier.png, per_class.csv; each whole or not at all.

    tilted: as in `figure`. Returns the files' names.
    """
    content = {**record, "rows": rows}
    content[HASH] = content_hash(content)  # without the closed form, which follows from the config
    texts = {"frontier.csv": csv_text(rows)}
    if "accuracy_per_class" in rows[0]:
        texts["per_class.csv"] = per_class_text(rows)
    write_texts(folder, texts)
    write_json(folder / "frontier.json", content | ({"tilted": tilted} if tilted else {}), indent=1)
    with writing(folder / "frontier.png") as new:
        figure(rows, network, tilted).savefig(new, dpi=130, metadata={"Software": None})
    return ["frontier.json", *texts, "frontier.png"]


def bits_lines(found):
    """What `held_out_bits` found, in a few lines."""
    error = "" if found["standard_error"] is None else f" ± {found['standard_error']:.4f}"
    v = "learned variance" if found["learned_variance"] else f"v = {found['v']:g}"
    return [
        f"{found['bits_per_dim']:.4f}{error} bits/dim (at most) on {found['num_examples']:,} "
        f"held-out examples; T = {found['num_steps']}, {v}, {found['spacing']} λ up to {found['logsnr'][-1]:g}",
        f"prior {found['prior']:.6f}, transitions {found['transitions']:.4f}, decoder {found['decoder']:.4f}",
    ]


def write_bits(folder, found):
    """Writes bits_per_dim.json, and bits_per_dim.csv with the term of each λ; returns their names."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["logsnr", "term", "bits_per_dim"])
    writer.writerow([found["logsnr"][0], "prior", found["prior"]])
    kinds = ["transition"] * (found["num_steps"] - 1) + ["decoder"]
    writer.writerows(zip(found["logsnr"], kinds, found["terms"], strict=True))
    write_texts(folder, {"bits_per_dim.csv": out.getvalue()})
    write_json(folder / "bits_per_dim.json", found, indent=1)
    return ["bits_per_dim.json", "bits_per_dim.csv"]


def write_texts(folder, texts):
    """Writes {name: text} into folder, made if need be, each file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        with writing(folder / name) as new:
            new.write_text(text)
