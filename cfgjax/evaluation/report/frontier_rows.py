"""The rows of a frontier: which of their columns are settings and which are metrics, and the curves that they form."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cfgjax.runs.sample_options import fields

Row = dict[str, Any]  # {setting or metric: value} of one frontier

COST = "network_evaluations"  # key of a row: those for one sample, of rows that older versions did not write
INTERVAL = "guidance_interval"  # key of a row: `interval_text` of its rule and levels, of rows that older versions lack
INFLUENCES = "influences"  # key of a row: file with the influence of each sample on its metrics, beside frontier.json
DETAIL = ("_std", "_10", "_interval", "_change")  # endings of metrics that appear only in the files


def varying_keys() -> tuple[str, ...]:
    """Returns the keys of a row that may vary within one frontier, besides its weight and seed."""
    return ("scores", *(name for name in reversed(fields()) if name not in ("guidance", "seed")))


def setting_keys() -> tuple[str, ...]:
    """Returns the keys of a row that are the same along a curve, unless one of them takes the place of w."""
    return (*varying_keys(), "classifier", "weak", "num_samples")


def metric_names(rows: Sequence[Row]) -> list[str]:
    """Returns the names of the scalar metrics of the rows, in order."""
    settings = (*setting_keys(), "guidance_weight", "seed", COST)
    return [name for name, value in rows[0].items() if name not in settings and not isinstance(value, list | str)]


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

    along: the key that takes the place of w, by default `strength`. Rows of several evaluations have a "run".
    """
    along = along or strength(rows)
    several = [key for key in ("run", *varying_keys()) if key != along and len({row.get(key) for row in rows}) > 1]
    number = lambda value: f"{value:g}" if isinstance(value, float) else str(value)
    result: dict[str, dict[float, list[Row]]] = {}
    for row in sorted(rows, key=lambda row: row[along]):
        name = ", ".join(f"{row[key]}" if key == "scores" else f"{key}={number(row[key])}" for key in several)
        result.setdefault(name, {}).setdefault(row[along], []).append(row)
    return result


def spread(rows: Sequence[Row], name: str) -> tuple[float, float]:
    """Returns (mean, standard deviation with n − 1) of a metric over the seeds.

    For one seed, (value, half the width of its 95 % interval over the samples, 0 if there is none).
    """
    values = [row[name] for row in rows]
    if len(values) == 1:
        return float(values[0]), float(rows[0].get(f"{name}_interval") or 0.0)
    return float(np.mean(values)), float(np.std(values, ddof=1))


def spread_note(rows: Sequence[Row]) -> str:
    """Returns what ± means in a table of the rows, or "" if there is none in it."""
    seeds = len({row["seed"] for row in rows})
    if seeds > 1:
        return f"±: standard deviation over {seeds} seeds"
    known = any(name.endswith("_interval") for name in rows[0])
    return "±: half of the 95 % interval over the samples" if known else ""
