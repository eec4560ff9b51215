"""Evaluating from Python: `cfgjax.evaluate(workdir, guidance=(0, 1))`."""

import contextlib
from collections.abc import Mapping
from typing import Any

from cfgjax.base.errors import UsageError, nearest
from cfgjax.base.storage import Place
from cfgjax.evaluation.frontier.paired import read_baseline
from cfgjax.evaluation.frontier.plan import plan_frontier
from cfgjax.evaluation.frontier.result import FrontierResult, measure_frontier
from cfgjax.models.guide import Guide
from cfgjax.models.loading import load
from cfgjax.models.model import Model
from cfgjax.models.weak import WeakRun
from cfgjax.runs.sample_options import fields


def evaluate(
    model: str | Place | Model,
    *,
    num_samples: int | None = None,
    features: str | None = None,
    classifier: str | Place | None = None,
    inception: str | Place | None = None,
    reference: str | Place | None = None,
    batch_size: int | None = None,
    baseline: str | None = None,
    neighbours: bool = True,
    guide: Guide | None = None,
    weak: WeakRun | None = None,
    out: str | Place | None = None,
    **options: Any,
) -> FrontierResult:
    """Measures a run in every combination of the options, and writes the files of `cfgjax evaluate`.

    Returns the `FrontierResult`, whose rows have the metrics of each combination. An evaluation that was stopped
    resumes with the samples that it had drawn.

    model: a workdir, or a `Model` that `cfgjax.load` returned. num_samples: samples per combination. features:
    "inception", "classifier" or "mixture". classifier: workdir of a classifier, for features or accuracy. reference:
    .npz file of reference statistics. batch_size: samples per call on each device. These five are by default those of
    config.evaluate. inception: file of Inception's weights; by default the one that `cfgjax download inception` wrote.
    baseline: the setting with which the others are compared, such as "guidance=1,rule=cfg()"; by default the first with
    w = 0. neighbours: whether precision, recall and the intervals are measured, which keeps all features in memory.
    guide, weak: networks that `cfgjax.load_guide` and `cfgjax.load_weak` returned. out: the folder to
    write; by default <workdir>/evaluation. options: fields of `SampleOptions`, each one value or a list of values, such
    as guidance=(0, 1) or rule=["cfg()", "apg(eta=0)"]; by default those of config.evaluate.

    Raises UsageError for invalid values, and if several processes run: use the command `cfgjax evaluate` then.
    """
    model = load(model) if isinstance(model, str | Place) else model
    if model.workdir is None:
        raise UsageError("the model does not belong to a run; pass a workdir, or a model that cfgjax.load returned")
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
