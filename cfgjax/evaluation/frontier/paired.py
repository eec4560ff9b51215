"""Intervals of the metrics of each setting, and of their differences from those of a baseline setting, by pairs.

A metric `name` of a row comes with `name_interval`, half the width of its 95 % interval, `name_change`, its difference
from the baseline, and `name_change_interval`, half the width of the interval of that; see `metrics.influence`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cfgjax.base.errors import UsageError, nearest
from cfgjax.evaluation.frontier.generate import policy_labels
from cfgjax.evaluation.metrics.influence import half_width
from cfgjax.models.binding import grid_value, rule_value, sampler_value
from cfgjax.models.groups import group_size
from cfgjax.runs.sample_options import SampleOptions, fields, read_values, split

Rows = Sequence[dict[str, Any]]
SampleInfluences = Mapping[str, Float[np.ndarray, " n"]]  # of one setting, by metric

GROUPED = ("scores", "seed")  # keys of a row that its baseline shares: pairs need the same noise


class Design(NamedTuple):
    """How samples are drawn, for `half_width`: their labels if the number per class is fixed, and the group size."""

    labels: Int[np.ndarray, " n"] | None = None
    group_size: int = 1


def design(options: SampleOptions, num_samples: int, num_classes: int) -> Design:
    """Returns the `Design` of the samples of a setting."""
    fixed = options.label_policy == "balanced"
    labels = policy_labels(options, np.arange(num_samples), num_classes) if fixed else None
    return Design(labels, group_size(sampler_value(options.sampler)))


def paired_design(own: Design, other: Design) -> Design:
    """Returns the `Design` of the pairs of samples of two settings."""
    known = own.labels is not None and other.labels is not None and own.group_size == other.group_size
    return Design(own.labels if known else None, math.lcm(own.group_size, other.group_size))


def with_intervals(metrics: Mapping[str, Any], influences: SampleInfluences, drawn: Design) -> dict[str, Any]:
    """Returns the metrics of a setting with their intervals."""
    return {**metrics, **{f"{name}_interval": half_width(values, *drawn) for name, values in influences.items()}}


def read_baseline(text: str | None, more: Sequence[str] = ()) -> dict[str, Any]:
    """Returns {key of a row: value} of the flag --baseline, such as "guidance=1,rule=cfg()", or "1" for a weight.

    more: names of other keys of a row, whose values are texts.
    Raises UsageError for an unknown option or an invalid value.
    """
    found: dict[str, Any] = {}
    for word in [] if text is None else split(text):
        name, equals, value = word.partition("=")
        if not equals:
            name, value = "guidance", word
        if name in more:
            found[name] = value.strip("'\"")
            continue
        if name not in fields("evaluate"):
            raise UsageError(f"--baseline={text}: unknown option {name!r}{nearest(name, fields('evaluate'))}")
        values = read_values(name, value, "baseline")
        if len(values) != 1:
            raise UsageError(f"--baseline={text}: {name} has {len(values)} values; give one")
        makers: dict[str, Callable] = {"rule": rule_value, "sampler": sampler_value, "grid": grid_value}
        found["guidance_weight" if name == "guidance" else name] = (
            repr(makers[name](value)) if name in makers else values[0]
        )
    return found


def baselines(rows: Rows, wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the baseline of each row: the first with the wanted values among those of the same scores and seed.

    By default it is the first with w = 0, or the first of all if there is none. Raises UsageError if no row has the
    wanted values.
    """
    result = []
    for row in rows:
        group = [other for other in rows if all(other.get(key) == row.get(key) for key in GROUPED)]
        if wanted:
            found = [other for other in group if all(other.get(key) == value for key, value in wanted.items())]
            if not found:
                given = ", ".join(f"{key}={value}" for key, value in wanted.items())
                known = "; ".join(f"{key} {', '.join(dict.fromkeys(str(r.get(key)) for r in rows))}" for key in wanted)
                raise UsageError(f"--baseline: no setting has {given} (those measured have {known})")
        else:
            found = [other for other in group if other["guidance_weight"] == 0] or group
        result.append(found[0])
    return result


def setting_text(row: Mapping[str, Any], rows: Rows, keys: Sequence[str]) -> str:
    """Returns a row's weight, and its values of those keys that vary among the rows."""
    several = [key for key in keys if len({str(other.get(key)) for other in rows}) > 1]
    return ", ".join([f"w={row['guidance_weight']:g}", *(f"{key}={row.get(key)}" for key in several)])


def with_changes(
    rows: Rows,
    influences: Callable[[int], SampleInfluences],
    designs: Callable[[int], Design],
    bases: Rows,
    keys: Sequence[str],
) -> list[dict[str, Any]]:
    """Returns the rows with the differences from their baseline, as pairs of samples with the same noise and label.

    influences, designs: of the row of an index. bases: of the rows, see `baselines`. keys: of the settings, for the
    text of the baseline.
    """
    result, keys = [], [key for key in keys if key not in GROUPED]
    for i, (row, base) in enumerate(zip(rows, bases, strict=True)):
        at = next(j for j, other in enumerate(rows) if other is base)
        own, theirs = influences(i), influences(at)
        pairs = paired_design(designs(i), designs(at))
        changes = {}
        for name in own.keys() & theirs.keys() & row.keys():
            changes[f"{name}_change"] = row[name] - base[name]
            changes[f"{name}_change_interval"] = half_width(own[name].astype(np.float64) - theirs[name], *pairs)
        ordered = [f"{name}{end}" for name in row for end in ("_change", "_change_interval")]
        result.append(
            {**row, "baseline": setting_text(base, rows, keys), **{n: changes[n] for n in ordered if n in changes}}
        )
    return result
