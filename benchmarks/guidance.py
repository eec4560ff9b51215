"""Writes docs/guidance.md: its figures and tables, from stored results.

python benchmarks/guidance.py --mixture          # docs/guidance/mixture.png and .json, half a minute
python benchmarks/guidance.py --steps            # the figures of the samplers, from docs/guidance/*.csv
python benchmarks/guidance.py                    # docs/guidance.md, from docs/guidance/*.json
"""

import csv
import json
import math
import re
import statistics
import sys
import textwrap
from pathlib import Path

import harness
from absl import flags

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "guidance"

GRID_LINES = {"schedule()": "solid", "edm()": "dashed"}  # grids in figures, and their lines
MAX_LARGER = 0.1  # than the baseline's distance, for a match; distances differ so much between seeds of the noise
FD, COST = "FD-classifier", "network_evaluations"  # columns of the stored tables

MEANS, STDS, WEIGHTS = [(0.0, 0.0), (1.6, 0.5), (-0.4, 1.5)], [0.5, 0.6, 0.6], [0.4, 0.3, 0.3]
LABEL, W, COUNT, STEPS = 0, 1.5, 4000, 64
WEAK_STDS = [0.8, 0.9, 0.9]  # of the weak model of autoguidance, a blurred mixture
PANELS = (  # (rule, sampler) of each panel of the figure of the mixture
    ("conditional()", "dpmpp_2m()"),
    ("cfg()", "dpmpp_2m()"),
    ("cfg()", "ancestral(v=0)"),
    ("cfg()", "tilted(v=0, particles=40)"),
    ("cfg()", "dpmpp_2m_sde()"),
    ("interval(low=0.3, high=2)", "dpmpp_2m()"),
    ("ramp(shape='cosine')", "dpmpp_2m()"),
    ("table(logsnr=(-6, 0, 6), factor=(0, 1.5, 0.5))", "dpmpp_2m()"),
    ("rescale(phi=0.7)", "dpmpp_2m()"),
    ("apg(eta=0)", "dpmpp_2m()"),
    ("cfg_zero(zero_steps=1)", "dpmpp_2m()"),
    ("cfg_plus_plus()", "ddim()"),
    ("classifier(conditional(), scale=1.5)", "dpmpp_2m()"),
    ("autoguidance()", "dpmpp_2m()"),
    ("compose(labels=(2,), scales=(0.5,))", "dpmpp_2m()"),
    ("negative(label=1)", "dpmpp_2m()"),
)
WEIGHTS_OF = {"conditional": 0.0, "classifier": 0.0, "cfg_plus_plus": -0.75}
"""Of the rules that have another weight than W. The scale 1 + w of CFG++ is multiplied by about 10 at 64 levels."""


def mixture_panels():
    """Returns (mixture, [{"rule", "sampler", "w", "x" [N, 2]} of each panel])."""
    import jax
    import jax.numpy as jnp

    from cfgjax.diffusion.guidance import RULES, bind_rule, on_grid, on_labels
    from cfgjax.diffusion.mixture import GaussianMixture
    from cfgjax.diffusion.samplers import SAMPLERS, initial_noise, sample
    from cfgjax.diffusion.schedules import logsnr_grid
    from cfgjax.diffusion.specs import parse
    from cfgjax.models.binding import filled, with_weak

    mixture, weak = (GaussianMixture(MEANS, stds, WEIGHTS) for stds in (STDS, WEAK_STDS))
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(COUNT))
    z, logsnrs = initial_noise(keys, (2,)), logsnr_grid(STEPS, "cosine", -12, 12)
    predict, weaker = (lambda z, logsnr, label, m=m: m.predict(z, logsnr, label) for m in (mixture, weak))
    label, null = jnp.full(COUNT, LABEL), jnp.full(COUNT, mixture.num_components)
    guide = lambda z, logsnr, label: jnp.take_along_axis(mixture.log_posterior(z, logsnr), label[:, None], 1)[:, 0]
    panels = []
    for rule_text, sampler_text in PANELS:
        rule, sampler = parse(rule_text, RULES), parse(sampler_text, SAMPLERS, "sampler")
        rule = filled(with_weak(rule, jax.tree_util.Partial(weaker)), jax.tree_util.Partial(guide), None)
        w = WEIGHTS_OF.get(rule_text.partition("(")[0], W)
        rule = on_labels(on_grid(rule, logsnrs), lambda other: jnp.broadcast_to(other, (COUNT,)))
        run = jax.jit(
            lambda z, rule=rule, w=w, s=sampler: sample(s, bind_rule(rule, predict, label, null, w), keys, z, logsnrs)
        )
        panels.append({"rule": rule_text, "sampler": sampler_text, "w": w, "x": jax.device_get(run(z))})
    return mixture, panels


def density_grid(mixture, label, w, points=161):
    """Returns (axis, axis, density of p(x|c)^(1+w) p(x)^(−w), normalised on the grid)."""
    import numpy as np

    across, up = np.linspace(-2.6, 2.6, points), np.linspace(-2.6, 2.6, points)
    grid = np.stack(np.meshgrid(across, up), axis=-1).reshape(-1, 2).astype(np.float32)
    strong, weak = (np.asarray(mixture.log_prob(grid, label=c), float) for c in (label, None))
    log_density = (1 + w) * strong - w * weak
    density = np.exp(log_density - log_density.max()).reshape(points, points)
    return across, up, density / density.sum() / ((across[1] - across[0]) * (up[1] - up[0]))


def moments(x):
    """Returns {"mean": [2], "std": [2]} of points [N, 2], rounded."""
    return {"mean": [round(float(m), 3) for m in x.mean(axis=0)], "std": [round(float(s), 3) for s in x.std(axis=0)]}


def grid_moments(across, up, density):
    """Returns the `moments` of a density on a grid."""
    import numpy as np

    share = density / density.sum()
    found = {"mean": [], "std": []}
    for values, weights in ((across, share.sum(axis=0)), (up, share.sum(axis=1))):
        mean = float(values @ weights)
        found["mean"].append(round(mean, 3))
        found["std"].append(round(float(np.sqrt((values - mean) ** 2 @ weights)), 3))
    return found


def draw_mixture(folder):
    """Writes mixture.png, what each rule samples beside the tilted density, and mixture.json, their moments."""
    import matplotlib.pyplot as plt

    mixture, panels = mixture_panels()
    target = density_grid(mixture, LABEL, W)
    conditional = density_grid(mixture, LABEL, 0.0)
    figure, axes = plt.subplots(4, 4, figsize=(11, 11), sharex=True, sharey=True, layout="constrained")
    for axis, panel in zip(axes.flat, panels, strict=True):
        levels = [share * target[2].max() for share in (0.05, 0.3, 0.7)]
        axis.scatter(*panel["x"][:1500].T, s=1.5, color="#0072b2", alpha=0.5, linewidths=0, rasterized=True)
        axis.contour(*target, levels=levels, colors="#d55e00", linewidths=1)
        axis.contour(*conditional, levels=[0.1 * conditional[2].max()], colors="0.5", linewidths=1, linestyles="dashed")
        rule = "\n".join(textwrap.wrap(panel["rule"], 38))
        axis.set_title(f"{rule}\n{panel['sampler']}, w = {panel['w']:g}", fontsize=8)
        axis.set(xlim=(-2.4, 1.6), ylim=(-2.2, 1.8), aspect="equal")
    figure.savefig(folder / "mixture.png", dpi=130)
    plt.close(figure)
    rows = [{key: panel[key] for key in ("rule", "sampler", "w")} | moments(panel["x"]) for panel in panels]
    found = {"w": W, "steps": STEPS, "count": COUNT, "tilted": grid_moments(*target), "rows": rows}
    (folder / "mixture.json").write_text(json.dumps(found, indent=1) + "\n")


def mixture_table(found):
    """Returns the table of the moments of each panel, and of the tilted density."""
    rows = [("rule", "sampler", "w", "mean", "standard deviations")]
    for row in found["rows"]:
        rows.append((f"`{row['rule']}`", f"`{row['sampler']}`", f"{row['w']:g}", *pairs(row)))
    rows.append(("*tilted density*", "*quadrature*", f"{found['w']:g}", *pairs(found["tilted"])))
    return markdown(rows)


def pairs(row):
    """Returns the texts of a mean and of standard deviations."""
    return tuple(", ".join(f"{value:.2f}" for value in row[key]) for key in ("mean", "std"))


def markdown(rows):
    """Returns rows of cells as a Markdown table, whose first row is its header."""
    return "\n".join(harness.markdown_table(rows[0], rows[1:]))


def stored(name):
    """Returns the rows of a stored table of `cfgjax compare`, with numbers as floats."""
    with open(FOLDER / f"{name}.csv", newline="") as file:
        return [{key: number(value) for key, value in row.items()} for row in csv.DictReader(file)]


def number(text):
    """Returns text as a float if it is a number."""
    try:
        return float(text)
    except ValueError:
        return text


def distance(row):
    """Returns the Fréchet distance of a row with its interval."""
    return f"{row[FD]:.3f} ± {row[f'{FD}_interval']:.3f}"


def steps_table(name):
    """Returns a table of the Fréchet distance of each sampler and grid against the network evaluations.

    Distances that are as good as the baseline's, see `matches` and `is_near`, are bold; † marks those that match only
    because their intervals are wide.
    """
    rows = stored(name)
    costs = sorted({column(row) for row in rows})
    table, base = [("sampler", "grid", "w", *(f"{cost}" for cost in costs))], baseline(rows)
    line = lambda row: (row["sampler"], row["grid"], row["guidance_weight"])
    for sampler, grid, w in dict.fromkeys(line(row) for row in rows):
        own = {column(row): row for row in rows if line(row) == (sampler, grid, w)}
        cells = [distance_or_match(own[cost], base) if cost in own else "" for cost in costs]
        table.append((f"`{sampler}`", f"`{grid}`", f"{w:g}", *cells))
    return markdown(table)


def column(row):
    """Returns the power of two that is nearest to the network evaluations of a row."""
    return 2 ** round(math.log2(row[COST]))


def draw_steps(name):
    """Writes a figure of distance and accuracy against network evaluations at the baseline's w, for two grids."""
    import matplotlib.pyplot as plt

    rows = stored(name)
    base = baseline(rows)
    rows = [row for row in rows if row["guidance_weight"] == base["guidance_weight"]]
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    colors = {sampler: f"C{i}" for i, sampler in enumerate(dict.fromkeys(row["sampler"] for row in rows))}
    for sampler, grid in dict.fromkeys((row["sampler"], row["grid"]) for row in rows):
        own = sorted((row for row in rows if (row["sampler"], row["grid"]) == (sampler, grid)), key=lambda r: r[COST])
        if grid not in GRID_LINES or (shown := [row for row in own if row[FD] < 3 * base[FD]]) == []:
            continue
        style = {"marker": "o", "markersize": 4, "linewidth": 1, "capsize": 2, "color": colors[sampler]}
        style |= {"label": f"{sampler}, {grid}", "linestyle": GRID_LINES[grid]}
        for axis, key in zip(axes, (FD, "accuracy"), strict=True):
            y, width = ([row[part] for row in shown] for part in (key, f"{key}_interval"))
            axis.errorbar([row[COST] for row in shown], y, yerr=width, **style)
    for axis, key, title in zip(axes, (FD, "accuracy"), (FD, "share with the requested class"), strict=True):
        axis.axhline(base[key], color="0.5", linestyle="dotted", linewidth=1)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set(xlabel="network evaluations per sample", title=f"{title}, w = {base['guidance_weight']:g}")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(FOLDER / f"{name}.png", dpi=130, metadata={"Software": None})
    plt.close(figure)


def baseline(rows):
    """Returns the row that the others are compared with."""
    return next(row for row in rows if row[f"{FD}_change"] == row[f"{FD}_change_interval"] == 0)


def distance_or_match(row, base):
    """Returns a row's distance, marked as in `steps_table`, its accuracy, and its cost if it is not the column's."""
    text = f"{row[FD]:.3f}"
    if matches(row):
        text = f"**{text}**" if is_near(row, base) else f"{text} †"
    other = "" if row[COST] == column(row) else f" ({row[COST]:.0f})"
    return f"{text}, {100 * row['accuracy']:.1f} %{other}"


def matches(row):
    """Returns whether distance and accuracy are as good as those of the baseline, within the paired intervals."""
    near = row[f"{FD}_change"] <= row[f"{FD}_change_interval"]
    return near and row["accuracy_change"] >= -row["accuracy_change_interval"]


def is_near(row, base):
    """Returns whether the distance is at most MAX_LARGER larger than that of the baseline."""
    return row[f"{FD}_change"] <= MAX_LARGER * base[FD]


def fewest(name):
    """Returns a sentence with the fewest network evaluations that match the baseline of a table of `steps_table`."""
    rows = stored(name)
    base = baseline(rows)
    found = sorted((r for r in rows if matches(r) and is_near(r, base)), key=lambda r: (r[COST], r[FD]))
    row = found[0]
    change, width = (row[f"{FD}_change{part}"] for part in ("", "_interval"))
    least, most = (100 * (change + sign * width) / base[FD] for sign in (-1, 1))
    return (
        f"The fewest evaluations that match the {base[COST]:.0f} of `{base['sampler']}` are {row[COST]:.0f}, by "
        f"`{row['sampler']}` on the grid `{row['grid']}`: {distance(row)} against {distance(base)}, a difference of "
        f"{change:+.4f} ± {width:.4f}, or {least:+.0f} to {most:+.0f} % of the baseline's distance.".replace("-", "−")
    )


def rules_table(name):
    """Returns a table of the metrics of each rule and weight, with the paired difference of the distance.

    At w = 0 all rules are the conditional model, which has one line for each number of evaluations; the weight of
    `classifier` is its scale. A sampler is named where it is not that of the baseline.
    """
    table = [("rule", "w", "evaluations", "FD", "difference", "precision", "recall", "coverage", "accuracy")]
    rows = stored(name)
    usual = baseline(rows)["sampler"]
    for row in rows:
        row["weight"] = row["guidance_weight"] or row["classifier_scale"] or 0.0
    unguided = {row[COST]: row for row in rows if row["weight"] == 0}
    for row in [*unguided.values(), *(row for row in rows if row["weight"])]:
        change = f"{row[f'{FD}_change']:+.3f} ± {row[f'{FD}_change_interval']:.3f}"
        shares = [f"{row[key]:.3f}" for key in ("precision", "recall", "coverage", "accuracy")]
        rule = f"`{row['rule'] if row['weight'] else 'conditional()'}`"
        rule += f", `{row['sampler']}`" if row["sampler"] != usual else ""
        change = change if row[f"{FD}_change_interval"] else "the baseline"
        table.append((rule, f"{row['weight']:g}", f"{row[COST]:.0f}", distance(row), change, *shares))
    return markdown(table)


def crossed_table(name, key, title):
    """Returns a table of the Fréchet distance with a line for each value of a key and a column for each w.

    Several rows of a cell, of trainings that differ in their seed, become mean ± standard deviation.
    """
    rows = stored(name)
    weights = sorted({row["guidance_weight"] for row in rows})
    table = [(title, *(f"w = {w:g}" for w in weights))]
    for value in dict.fromkeys(key(row) for row in rows):
        cells = []
        for w in weights:
            same = [row for row in rows if key(row) == value and row["guidance_weight"] == w]
            cells.append(distance(same[0]) if len(same) == 1 else spread([row[FD] for row in same]))
        table.append((f"{value:g}" if isinstance(value, float) else value, *cells))
    return markdown(table)


def spread(values):
    """Returns the mean and the standard deviation of values."""
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def sampler_and_grid(row):
    """Returns the sampler and the grid of a row as text."""
    return f"`{row['sampler']}`, `{row['grid']}`"


def p_uncond(row):
    """Returns the p_uncond of a row of a sweep, from the name of its run."""
    return float(row["run"].split("p_uncond=")[1].split(",")[0])


def with_strips(text):
    """Returns text with the pictures of `strips.py` in their places."""
    path = FOLDER / "strips" / "strips.json"
    drawn = json.loads(path.read_text()) if path.exists() else {"about": "", "captions": {}}
    text = text.replace("{{strips}}", f" {drawn['about']}".rstrip())
    for name, caption in drawn["captions"].items():
        text = text.replace(f"{{{{strip {name}}}}}", f"![{caption}](guidance/strips/{name}.png)\n{caption}\n")
    return re.sub(r"(\{\{strip \w+\}\}\n)+\n?", "", text)


STEP_TABLES = ("digits_steps", "fashion_mnist_steps")  # stored tables of samplers against network evaluations
TABLES = {
    "digits_steps": steps_table,
    "digits_fewest": lambda _: fewest("digits_steps"),
    "digits_rules": rules_table,
    "digits_layers": rules_table,
    "digits_noise": lambda name: crossed_table(name, sampler_and_grid, "sampler, grid"),
    "digits_widths": lambda name: crossed_table(name, lambda row: row["ema"], "σ_rel"),
    "digits_p_uncond": lambda name: crossed_table(name, p_uncond, "p_uncond"),
    "fashion_mnist_frontier": rules_table,
    "fashion_mnist_rules": rules_table,
    "fashion_mnist_widths": lambda name: crossed_table(name, lambda row: row["ema"], "σ_rel"),
    "fashion_mnist_steps": steps_table,
    "fashion_mnist_fewest": lambda _: fewest("fashion_mnist_steps"),
}  # name in the template: function of the name


def document():
    """Returns docs/guidance.md, from the template and the stored results. A figure stays beside its interval."""
    found = json.loads((FOLDER / "mixture.json").read_text())
    text = Path(__file__).with_suffix(".template.md").read_text()
    text = text.replace("{{count}}", f"{found['count']:,}").replace("{{mixture}}", mixture_table(found))
    for name, make in TABLES.items():
        if f"{{{{{name}}}}}" in text:
            text = text.replace(f"{{{{{name}}}}}", make(name).replace(" ± ", "\u00a0±\u00a0"))
    return with_strips(text)


def main(argv):
    """Runs `guidance.py FLAGS`. Returns the exit code."""
    given = flags.FlagValues()
    flags.DEFINE_bool("mixture", False, "Draw the figure of the mixture again.", flag_values=given)
    flags.DEFINE_bool("steps", False, "Draw the figures of the network evaluations again.", flag_values=given)

    def write():
        if given.mixture:
            FOLDER.mkdir(exist_ok=True)
            draw_mixture(FOLDER)
        for name in STEP_TABLES if given.steps else ():
            draw_steps(name)
        FOLDER.with_suffix(".md").write_text(document())

    return harness.command(argv, __doc__, given, write)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
