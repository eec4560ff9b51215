"""Evaluating from Python: `cfgjax.evaluate(workdir, guidance=(0, 1))`."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfgjax.base.errors import UsageError, nearest
from cfgjax.evaluation.frontier.paired import read_baseline
from cfgjax.evaluation.frontier.plan import plan_frontier
from cfgjax.evaluation.frontier.result import FrontierResult, measure_frontier
from cfgjax.models.guide import Guide
from cfgjax.models.loading import load
from cfgjax.models.model import Model
from cfgjax.models.weak import WeakRun
from cfgjax.runs.sample_options import fields


def evaluate(
    model: str | Path | Model,
    *,
    num_samples: int | None = None,
    features: str | None = None,
    classifier: str | Path | None = None,
    inception: str | Path | None = None,
    reference: str | Path | None = None,
    batch_size: int | None = None,
    baseline: str | None = None,
    neighbours: bool = True,
    guide: Guide | None = None,
    weak: WeakRun | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> FrontierResult:
    """Measures a run in every combination of the options, and writes the files of `cfgjax evaluate`.

    model: a workdir, or a `Model` that `cfgjax.load` returned. options: of `SampleOptions`, one value or several each,
    such as guidance=(0, 1), rule=["cfg()", "apg(eta=0)"]; by default those of config.evaluate. num_samples, features,
    classifier, reference, batch_size: in place of those of config.evaluate. inception: file of Inception's weights.
    baseline: the setting with which the others are compared, such as "guidance=1,rule=cfg()"; by default the first
    w = 0. neighbours: whether precision, recall and the intervals are measured. guide, weak: as `cfgjax.load_guide` and
    `load_weak` return them. out: the folder; by default <workdir>/evaluation. A stopped evaluation is resumed.

    Raises UsageError for invalid values.
    """
    model = load(model) if isinstance(model, str | Path) else model
    if model.workdir is None:
        raise UsageError("the model is of no run; pass a workdir, or what cfgjax.load returned")
    known = fields("evaluate")
    if unknown := [name for name in options if name not in known]:
        raise UsageError(f"unknown option {unknown[0]!r}{nearest(unknown[0], known)}")
    requested = {name: value for name, value in options.items() if value is not None}
    changes: Mapping[str, Any] = {
        "num_samples": num_samples,
        "features": features,
        "classifier": classifier,
        "reference": reference,
        "batch_size": batch_size,
    }
    plan = plan_frontier(
        model,
        {name: tuple(value) if isinstance(value, list | tuple) else (value,) for name, value in requested.items()},
        workdir=model.workdir,
        folder=out,
        changes=changes,
        guide=guide,
        weak=weak,
        inception=inception,
        baseline=read_baseline(baseline),
        neighbours=neighbours,
    )
    with contextlib.closing(plan.work):
        found = measure_frontier(plan)
        if found is None:
            raise UsageError("cfgjax.evaluate is for one process; use `cfgjax evaluate` with several")
        found.write(plan)
        return found
