"""Frontiers of several runs side by side, and beside published rows: subtracted only where no setting differs."""

import csv
import dataclasses
import io

from cfgjax.base.cells import aligned, cell_text, either, text
from cfgjax.base.download import INCEPTION_SHA256
from cfgjax.base.errors import UsageError
from cfgjax.evaluation.report import files as report
from cfgjax.evaluation.report.targets import METRICS, SETTINGS, stated

SUBTRACTED = ("FID", "IS")
OWN_DATA = ("digits", "mixture")  # sources that are a data set; the others read whatever file they are given


@dataclasses.dataclass(frozen=True)
class Group:
    """Columns under one label. cells: {metric: {w: (mean, standard deviation, number of seeds)}}."""

    label: str
    cells: dict
    form: str = ".4g"


@dataclasses.dataclass(frozen=True)
class Curve:
    """Rows of one run that are apart in nothing but w and seed. setting: {name of SETTINGS: value}."""

    setting: dict
    own: Group


@dataclasses.dataclass(frozen=True)
class Run:
    """A frontier.json. facts: {column of the table of runs: text}; compared: {what runs must share: (value, text)}."""

    label: str
    facts: dict
    compared: dict
    curves: list


def make_run(label, record):
    """The `Run` of a frontier.json's content. Raises UsageError where that is something else."""
    try:
        rows, features, reference = record["rows"], record["features"], record["reference"]
        judge = (record["judge"] or {"digest": "none"})["digest"]
        values = {key: " / ".join(dict.fromkeys(text(row.get(key)) for row in rows)) for key in report.KEYS}
        facts = {
            "run": label,
            "step": str(record["checkpoint"]["step"]),
            "N": values["num_samples"],
            "labels": values["label_policy"],
            "sampler": values["sampler"] + (f", eta {values['eta']}" if rows[0]["eta"] is not None else ""),
            "T": values["num_steps"],
            "v": values["v"],
            "EMA": values["ema"],
            "p_uncond": text(record["config"]["diffusion"].get("p_uncond", 0.0)),
            "features": f"{features['name']} {short(features['digest'])}",
            "guide": guide_text(rows),
            "reference": f"{short(reference['digest'])}, {reference['origin']}",
        }
        compared = {
            **{name: (rows[0][name], text(rows[0][name])) for name in ("num_samples", "label_policy")},
            "features": (features["digest"], facts["features"]),
            "reference": (reference["digest"], short(reference["digest"])),
            "judge": (judge, short(judge)),
        }
        curves = [
            make_curve(label, name, same, record) for name, same in report.curves(rows, "guidance_weight").items()
        ]
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError) as e:
        raise UsageError(f"{label} is not what cfgjax evaluate writes: {type(e).__name__}: {e}") from e
    return Run(label, facts, compared, curves)


def make_curve(label, name, by_weight, record):
    """The `Curve` of one item of `report.curves`."""
    same: dict = {}
    for w, rows in by_weight.items():
        same.setdefault(rounded(w), []).extend(rows)
    row, config = next(iter(same.values()))[0], record["config"]
    p_uncond = config["diffusion"].get("p_uncond", 0.0)
    cells = {
        metric: {w: (*report.spread(rows, metric), len(rows)) for w, rows in same.items()}
        for metric in report.shown_names([row])
    }
    setting = {
        **{key: row[key] for key in ("num_samples", "label_policy", "sampler", "num_steps", "v")},
        "features": feature_name(record["features"]),
        "image_shape": list(config["data"]["image_shape"]),
        "num_classes": config["data"]["num_classes"],
        "data": config["data"]["source"],
        "reference": record["reference"]["origin"],
        "conditional": config["model"].get("conditional", True) and p_uncond < 1,
        "p_uncond": p_uncond,
        "classifier_scale": row.get("classifier_scale", 0.0),
    }
    return Curve(setting, Group(f"{label}: {name}" if name else label, cells))


def guide_text(rows):
    """The classifier that guides the samples of some rows, in words."""
    if not rows[0].get("classifier"):
        return "none"
    scales = " / ".join(dict.fromkeys(text(row["classifier_scale"]) for row in rows))
    return f"{short(rows[0]['classifier'])[:8]}, scale {scales} ({rows[0]['classifier_form']})"


def rounded(w):
    """w without the rounding error that it has as s − 1."""
    return float(f"{w:.6g}")


def short(digest):
    """The first digits of a digest, with what follows a dash."""
    head, dash, rest = digest.partition("-")
    return head[:8] + dash + rest


def feature_name(features):
    """The feature network's name; of Inception, that alone where weights and resizing are FID's."""
    name, digest = features["name"], features["digest"]
    usual = digest.startswith(INCEPTION_SHA256) and digest.endswith("-tf1")
    return name if usual or name != "inception" else f"{name} {short(digest)}"


def differences(setting, targets):
    """[(name, value, published values)] of what is known to differ between a curve's setting and the targets'."""
    found = [(name, setting[name], stated(targets, name)) for name in SETTINGS if checkable(name, setting, targets)]
    found = [item for item in found if item[1] not in item[2]]
    if any(name == "sampler" for name, *_ in found):
        return [item for item in found if item[0] != "v"]  # which is the published sampler's
    return found


def checkable(name, setting, targets):
    """Whether a setting is stated and the run's record says enough to be held against it."""
    known = name != "reference" and (name != "data" or setting["data"] in OWN_DATA)
    return bool(stated(targets, name)) and (known or setting[name] in stated(targets, name))


def unchecked(setting, targets):
    """Texts on the settings that are not `checkable`."""
    missing = [name for name in SETTINGS if not checkable(name, setting, targets)]
    told = {name: f"{either(values)} (not checked)" for name in missing if (values := stated(targets, name))}
    return [f"{name}: {text(setting[name])}, published {told.get(name, 'not stated')}" for name in missing]


def matching(setting, targets, known):
    """The published rows with one of the known w whose own settings, if any, are those given.

    No row for samples that a classifier guides as well, as no published row with a w is.
    """
    if setting["classifier_scale"]:
        return []
    own = [name for name in SETTINGS if name not in targets["setting"]]
    rows = [row for row in targets["rows"] if "w" in row and rounded(row["w"]) in known]
    return [row for row in rows if all(row[name] == setting[name] for name in own)]


def weights(groups):
    """Every w of the groups, increasing."""
    return sorted({w for group in groups for column in group.cells.values() for w in column})


def make_groups(runs, targets=None):
    """The `Group`s: of each curve, then of the published rows that match it, then of the differences from them."""
    curves = [curve for run in runs for curve in run.curves]
    known, found = weights([curve.own for curve in curves]), {}
    for curve in curves:
        found[curve.own.label] = curve.own
        rows = matching(curve.setting, targets, known) if targets else []
        if not rows:
            continue
        published = published_group(rows, targets)
        found[published.label] = published
        cells = subtracted(curve.own.cells, published.cells)
        if cells and not differences(curve.setting, targets):
            label = f"{curve.own.label} − {published.label}"
            found[label] = Group(label, cells, "+.4g")
    return list(found.values())


def published_group(rows, targets):
    """The Group of published rows that are apart in w only."""
    own = [f"{name}={text(rows[0][name])}" for name in SETTINGS if name in rows[0]]
    cells = {
        name: {rounded(row["w"]): (row[key], 0.0, 1) for row in rows if key in row}
        for key, name in METRICS.items()
        if any(key in row for row in rows)
    }
    return Group(", ".join([targets["name"], *own]), cells, "g")


def subtracted(cells, published):
    """{FID, IS: {w: (mean − published, standard deviation, number of seeds)}}, where both are there."""
    found = {}
    for name in SUBTRACTED:
        theirs = published.get(name, {})
        found[name] = {w: (cell[0] - theirs[w][0], *cell[1:]) for w, cell in cells.get(name, {}).items() if w in theirs}
    return {name: column for name, column in found.items() if column}


def notes(runs, targets=None):
    """Lines on what is not comparable, among the runs and with the targets."""
    lines, names = [], [run.label for run in runs]
    for key in runs[0].compared:
        values, texts = zip(*(run.compared[key] for run in runs), strict=True)
        if len(set(values)) > 1:
            listed = f"{', '.join(names[:-1])} and {names[-1]} differ in {key} ({'; '.join(texts)})"
            lines.append(f"{listed}: their columns are not comparable")
    if targets:
        for curve in (curve for run in runs for curve in run.curves):
            lines += [f"{curve.own.label}: {line}" for line in published_notes(curve, targets)]
        lines += [f"{targets['name']}: {line}" for line in about(targets)]
    return lines


def published_notes(curve, targets):
    """Lines on how a curve's setting stands to the published one."""
    lines, name = [], targets["name"]
    if curve.setting["classifier_scale"]:
        lines.append(f"not comparable with {name}: a classifier guides it, the published rows with a w have none")
    if found := differences(curve.setting, targets):
        verb = lambda key: "are" if key == "features" else "is"
        told = [f"{key} {verb(key)} {text(value)}, published {either(published)}" for key, value, published in found]
        lines.append(f"not comparable with {name}: {'; '.join(told)}")
    if not matching(curve.setting, targets, weights([curve.own])):
        lines.append(f"no row of {name} has its w and setting")
    if told := unchecked(curve.setting, targets):
        lines.append(f"not checked against {name}: {'; '.join(told)}")
    return lines


def about(targets):
    """Lines on the targets: their source, what is recalled, and what they list without a w."""
    lines = [targets["source"]]
    if recalled := targets.get("recalled"):
        lines.append(f"recalled, not checked against the paper's text: {', '.join(recalled)}")
    for row in [*targets.get("baselines", []), *(row for row in targets["rows"] if "w" not in row)]:
        named = row.get("name") or ", ".join(f"{key}={text(row[key])}" for key in row if key not in METRICS)
        scores = ", ".join(f"{name} {row[key]:g}" for key, name in METRICS.items() if key in row)
        lines.append(f"also lists {named}: {scores}")
    return lines


def facts_table(runs):
    """The lines of a table of the runs and what they were made with."""
    return aligned([list(runs[0].facts), *([*run.facts.values()] for run in runs)], right=False)


def table(groups):
    """The lines of a table: a w each, the groups beside one another under their labels."""
    every = weights(groups)
    blocks = [("", aligned([["w", "s"], *([f"{w:g}", f"{1 + w:g}"] for w in every)], right=True))]
    for group in groups:
        rows = [[cell_text(column.get(w), group.form) for column in group.cells.values()] for w in every]
        blocks.append((group.label, aligned([list(group.cells), *rows], right=True)))
    widths = [max(len(label), *map(len, lines)) for label, lines in blocks]
    columns = [
        [label.ljust(width), *(line.rjust(width) for line in lines)]
        for (label, lines), width in zip(blocks, widths, strict=True)
    ]
    return [" | ".join(line).rstrip() for line in zip(*columns, strict=True)]


def joined(groups):
    """[{"guidance_weight": w, "scale": s, "<label> <metric>": mean, …}], with "… std" where there are several seeds."""
    rows = []
    for w in weights(groups):
        row = {"guidance_weight": w, "scale": 1 + w}
        for group in groups:
            for name, column in group.cells.items():
                mean, std, _ = column.get(w, (None, None, 0))
                row[f"{group.label} {name}"] = mean
                if any(count > 1 for _, _, count in column.values()):
                    row[f"{group.label} {name} std"] = std
        rows.append(row)
    return rows


def csv_text(groups):
    """The rows of `joined` as CSV, what is absent empty."""
    rows, out = joined(groups), io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
