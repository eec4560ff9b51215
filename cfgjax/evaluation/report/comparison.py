"""Frontiers of several runs next to each other and to published rows, with differences where all settings agree."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from cfgjax.base.cells import aligned, cell_text, either, text
from cfgjax.base.errors import UsageError, one_line
from cfgjax.base.inception_weights import INCEPTION_SHA256
from cfgjax.evaluation.report import frontier_rows as report
from cfgjax.evaluation.report.frontier_rows import Row
from cfgjax.evaluation.report.protocol import protocol
from cfgjax.evaluation.report.targets import PUBLISHED_METRICS, SETTINGS, Targets, published_form, stated

CurveSetting = dict[str, Any]  # {name of SETTINGS, classifier_scale: value}
Cells = dict[str, dict[float, tuple[float, float, int]]]  # {metric: {w: (mean, standard deviation, number of seeds)}}

SUBTRACTED = ("FID", "IS")
OWN_DATA = ("digits", "mixture")  # sources with one data set; the others read any file


@dataclasses.dataclass(frozen=True)
class Group:
    """The columns under one label. form: format of their numbers."""

    label: str
    cells: Cells
    form: str = ".4g"


@dataclasses.dataclass(frozen=True)
class Curve:
    """Rows of one run that differ only in w and seed."""

    setting: CurveSetting
    own: Group


@dataclasses.dataclass(frozen=True)
class ComparedRun:
    """A frontier.json. facts: {column of the table of runs: text}. compared: {what runs must share: (value, text)}.

    card: its `protocol`.
    """

    label: str
    facts: dict[str, str]
    compared: dict[str, tuple[Any, str]]
    curves: list[Curve]
    card: dict[str, str]


def compared_run(label: str, record: dict[str, Any]) -> ComparedRun:
    """Returns the `ComparedRun` of the content of a frontier.json. Raises UsageError if it is something else."""
    try:
        rows, features, reference = record["rows"], record["features"], record["reference"]
        judge = (record["judge"] or {"digest": "none"})["digest"]
        values = {key: " / ".join(dict.fromkeys(text(row.get(key)) for row in rows)) for key in report.setting_keys()}
        facts = {
            "run": label,
            "step": str(record["checkpoint"]["step"]),
            "N": values["num_samples"],
            "labels": values["label_policy"],
            "rule": values["rule"],
            "sampler": values["sampler"],
            "T": values["num_steps"],
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
        card = protocol(record, rows)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError) as e:
        raise UsageError(f"{label} is not what cfgjax evaluate writes: {type(e).__name__}: {one_line(e)}") from e
    return ComparedRun(label, facts, compared, curves, card)


def make_curve(label: str, name: str, by_weight: dict[float, list[Row]], record: dict[str, Any]) -> Curve:
    """Returns the `Curve` of one item of `report.curves`."""
    same: dict[float, list[Row]] = {}
    for w, rows in by_weight.items():
        same.setdefault(rounded_weight(w), []).extend(rows)
    row, config = next(iter(same.values()))[0], record["config"]
    p_uncond = config["diffusion"].get("p_uncond", 0.0)
    cells = {
        metric: {w: (*report.spread(rows, metric), len(rows)) for w, rows in same.items()}
        for metric in report.shown_names([row])
    }
    setting = {
        **{key: row[key] for key in ("num_samples", "label_policy", "num_steps")},
        **published_form(row["sampler"]),
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


def guide_text(rows: Sequence[Row]) -> str:
    """Returns a description of the classifier that guides the samples of some rows."""
    if not rows[0].get("classifier"):
        return "none"
    scales = " / ".join(dict.fromkeys(text(row["classifier_scale"]) for row in rows))
    return f"{short(rows[0]['classifier'])[:8]}, scale {scales}"


def rounded_weight(w: float) -> float:
    """Returns w without the rounding error of s − 1."""
    return float(f"{w:.6g}")


def short(digest: str) -> str:
    """Returns the first digits of a digest, and its suffix after a dash."""
    head, dash, rest = digest.partition("-")
    return head[:8] + dash + rest


def feature_name(features: dict[str, Any]) -> str:
    """Returns the feature network's name, with its digest for Inception of other weights or resizing than FID's."""
    name, digest = features["name"], features["digest"]
    usual = digest.startswith(INCEPTION_SHA256) and digest.endswith("-tf1")
    return name if usual or name != "inception" else f"{name} {short(digest)}"


def differences(setting: CurveSetting, targets: Targets) -> list[tuple[str, Any, list[Any]]]:
    """Returns [(name, value, published values)] of the known differences between a curve's setting and the targets'."""
    known = [(name, setting[name], stated(targets, name)) for name in SETTINGS if checkable(name, setting, targets)]
    differing = [item for item in known if item[1] not in item[2]]
    if any(name == "sampler" for name, *_ in differing):
        return [item for item in differing if item[0] != "v"]  # v belongs to the published sampler
    return differing


def checkable(name: str, setting: CurveSetting, targets: Targets) -> bool:
    """Whether a setting is published and the run's record has enough information to compare it."""
    known = name != "reference" and (name != "data" or setting["data"] in OWN_DATA)
    return bool(stated(targets, name)) and (known or setting[name] in stated(targets, name))


def unchecked(setting: CurveSetting, targets: Targets) -> list[str]:
    """Returns a text for each setting that is not `checkable`."""
    missing = [name for name in SETTINGS if not checkable(name, setting, targets)]
    texts = {name: f"{either(values)} (not checked)" for name in missing if (values := stated(targets, name))}
    return [f"{name}: {text(setting[name])}, published {texts.get(name, 'not stated')}" for name in missing]


def matching(setting: CurveSetting, targets: Targets, known: Sequence[float]) -> list[Row]:
    """Returns the published rows with one of the known w and with this setting.

    Samples that a classifier guides match no row, since there are no such published rows with a w.
    """
    if setting["classifier_scale"]:
        return []
    own = [name for name in SETTINGS if name not in targets["setting"]]
    rows = [row for row in targets["rows"] if "w" in row and rounded_weight(row["w"]) in known]
    return [row for row in rows if all(row[name] == setting[name] for name in own)]


def weights(groups: Iterable[Group]) -> list[float]:
    """Returns every w of the groups in increasing order."""
    return sorted({w for group in groups for column in group.cells.values() for w in column})


def make_groups(runs: Sequence[ComparedRun], targets: Targets | None = None) -> list[Group]:
    """Returns, for each curve, its group, that of the published rows that match it, and that of their differences."""
    curves = [curve for run in runs for curve in run.curves]
    known = weights([curve.own for curve in curves])
    groups: dict[str, Group] = {}
    for curve in curves:
        groups[curve.own.label] = curve.own
        if not targets or not (rows := matching(curve.setting, targets, known)):
            continue
        published = published_group(rows, targets)
        groups[published.label] = published
        cells = subtracted(curve.own.cells, published.cells)
        if cells and not differences(curve.setting, targets):
            label = f"{curve.own.label} − {published.label}"
            groups[label] = Group(label, cells, "+.4g")
    return list(groups.values())


def published_group(rows: Sequence[Row], targets: Targets) -> Group:
    """Returns the group of published rows that differ only in w."""
    own = [f"{name}={text(rows[0][name])}" for name in SETTINGS if name in rows[0]]
    cells = {
        name: {rounded_weight(row["w"]): (row[key], 0.0, 1) for row in rows if key in row}
        for key, name in PUBLISHED_METRICS.items()
        if any(key in row for row in rows)
    }
    return Group(", ".join([targets["name"], *own]), cells, "g")


def subtracted(cells: Cells, published: Cells) -> Cells:
    """Returns {FID, IS: {w: (mean − published, standard deviation, number of seeds)}} where both exist."""
    result = {}
    for name in SUBTRACTED:
        theirs = published.get(name, {})
        own = cells.get(name, {})
        result[name] = {w: (own[w][0] - theirs[w][0], own[w][1], own[w][2]) for w in own if w in theirs}
    return {name: column for name, column in result.items() if column}


def notes(runs: Sequence[ComparedRun], targets: Targets | None = None) -> list[str]:
    """Returns lines on what is not comparable among the runs and with the targets."""
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


def published_notes(curve: Curve, targets: Targets) -> list[str]:
    """Returns lines on the differences between a curve's setting and the published one."""
    lines, name = [], targets["name"]
    if curve.setting["classifier_scale"]:
        guided = "a classifier guides its samples, but not those of the published rows with a w"
        lines.append(f"not comparable with {name}: {guided}")
    if differing := differences(curve.setting, targets):
        verb = lambda key: "are" if key == "features" else "is"
        texts = [f"{key} {verb(key)} {text(value)}, published {either(theirs)}" for key, value, theirs in differing]
        lines.append(f"not comparable with {name}: {'; '.join(texts)}")
    if not matching(curve.setting, targets, weights([curve.own])):
        lines.append(f"no row of {name} has one of its weights w with its setting")
    if texts := unchecked(curve.setting, targets):
        lines.append(f"not checked against {name}: {'; '.join(texts)}")
    return lines


def about(targets: Targets) -> list[str]:
    """Returns lines on the targets: their source, the recalled settings, and the rows without a w."""
    lines = [targets["source"]]
    if recalled := targets.get("recalled"):
        lines.append(f"recalled, not checked against the paper's text: {', '.join(recalled)}")
    for row in [*targets.get("baselines", []), *(row for row in targets["rows"] if "w" not in row)]:
        named = row.get("name") or ", ".join(f"{key}={text(row[key])}" for key in row if key not in PUBLISHED_METRICS)
        scores = ", ".join(f"{name} {row[key]:g}" for key, name in PUBLISHED_METRICS.items() if key in row)
        lines.append(f"also lists {named}: {scores}")
    return lines


def facts_table(runs: Sequence[ComparedRun]) -> list[str]:
    """Returns the lines of a table of the runs and their settings."""
    return aligned([list(runs[0].facts), *([*run.facts.values()] for run in runs)], right=False)


def comparison_table(groups: Sequence[Group]) -> list[str]:
    """Returns the lines of a table with a line for each w and the groups next to each other under their labels."""
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


def joined_columns(groups: Sequence[Group]) -> list[dict[str, float | None]]:
    """Returns [{"guidance_weight": w, "scale": s, "<label> <metric>": mean, …}], with "… std" or "… interval"."""
    rows = []
    for w in weights(groups):
        row: dict[str, float | None] = {"guidance_weight": w, "scale": 1 + w}
        for group in groups:
            for name, column in group.cells.items():
                mean, std, _ = column.get(w, (None, None, 0))
                row[f"{group.label} {name}"] = mean
                if any(std or count > 1 for _, std, count in column.values()):
                    several = any(count > 1 for _, _, count in column.values())
                    row[f"{group.label} {name} {'std' if several else 'interval'}"] = std
        rows.append(row)
    return rows
