"""Differences between the settings of several evaluations, by pairs of samples with the same noise and label."""

import functools
from collections.abc import Mapping
from typing import Any

from cfgjax.base.errors import UsageError
from cfgjax.evaluation.features.hashed import read_influences
from cfgjax.evaluation.frontier.paired import Design, SampleInfluences, baselines, design, with_changes
from cfgjax.evaluation.report.frontier_rows import INFLUENCES, setting_keys
from cfgjax.runs.sample_options import SampleOptions

RUN = "run"  # key of a row: the label of its evaluation
ALIKE = ("features", "judge", "reference")  # of evaluations whose samples can be paired


def rows_with_changes(records: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of several evaluations with their label as RUN and their differences from a baseline.

    records: {label: content of a frontier.json, as `gather` returns it}. wanted: of the baseline, see
    `paired.baselines`; it may have a RUN. Raises UsageError for evaluations that are measured in different ways, and
    for a setting whose influences are not stored.
    """
    check_shared(records)
    rows, designs = [], []
    for label, record in records.items():
        for row in record["rows"]:
            if INFLUENCES not in row:
                what = "was measured without influences of its samples"
                raise UsageError(f"--baseline: {label}, w = {row['guidance_weight']:g} {what}; evaluate it again")
            rows.append({RUN: label, **row})
            designs.append(row_design(row, record))
    bases = baselines(rows, wanted)
    for row, base in zip(rows, bases, strict=True):
        check_pairs(row, base)
    read = functools.lru_cache(maxsize=2)(lambda i: stored_influences(rows[i][INFLUENCES]))
    return with_changes(rows, read, designs.__getitem__, bases, (RUN, *setting_keys()))


def check_shared(records: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises UsageError unless all evaluations have the same feature network, judge and reference."""
    first, *others = records
    for key in ALIKE:
        digest = lambda label, key=key: (records[label][key] or {}).get("digest")
        for label in others:
            if digest(label) != digest(first):
                raise UsageError(f"--baseline: {first} and {label} differ in {key}; pairs need the same")


def check_pairs(row: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    """Raises UsageError unless the samples of two settings have the same number and labels."""
    for key in ("num_samples", "label_policy"):
        if row[key] != base[key]:
            what = f"{base[RUN]} has {key} {base[key]} and {row[RUN]} has {row[key]}"
            raise UsageError(f"--baseline: {what}; pairs need the same samples")


def row_design(row: Mapping[str, Any], record: Mapping[str, Any]) -> Design:
    """Returns the `Design` of the samples of a row."""
    options = SampleOptions(**{name: row[name] for name in ("seed", "label_policy", "sampler")})
    return design(options, row["num_samples"], record["config"]["data"]["num_classes"])


def stored_influences(path: str) -> SampleInfluences:
    """Returns the influences that `Frontier` stored. Raises UsageError for a file that is missing or damaged."""
    try:
        return read_influences(path)
    except UsageError as e:
        raise UsageError(f"--baseline: {e}; evaluate it again") from e
