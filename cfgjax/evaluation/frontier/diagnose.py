"""Diagnostics of guidance, level by level, of samples of a model."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from cfgjax.diffusion.samplers.diagnostics import (
    GuidanceDiagnostics,
    NoBranches,
    guidance_diagnostics,
    tilting_integral,
)
from cfgjax.distributed.collectives import gather_rows
from cfgjax.evaluation.frontier.frontier_settings import Setting
from cfgjax.evaluation.frontier.generate import policy_labels
from cfgjax.evaluation.frontier.paired import setting_text
from cfgjax.evaluation.report.frontier_rows import varying_keys
from cfgjax.models.binding import rule_value
from cfgjax.models.groups import batch_rows, group_size
from cfgjax.models.model import Model
from cfgjax.models.usable_rules import has_two_predictions
from cfgjax.runs.sample_options import SampleOptions, fields

log = logging.getLogger("cfgjax")

NUM_DIAGNOSED = 256  # samples of each setting of an evaluation
BAND = (10, 90)  # percentiles over the samples


def diagnose(
    model: Model,
    options: SampleOptions,
    labels: Int[np.ndarray, " n"],
    batch_size: int = 256,
    extra: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Returns the `GuidanceDiagnostics` of samples, sample i for labels[i], as JSON values.

    {"num_samples", "logsnr": [T], name: {"mean", "low", "high": [T]}} for each of difference, cosine, outside and
    tilting, the latter integrated up to each level; low and high are percentiles. options: rule has its guide and its
    weak model. extra: {name: [n, …]} of inputs besides the label. Raises NoBranches if the rule combines no two
    predictions.
    """
    if not has_two_predictions(rule_value(options.rule), model):
        raise NoBranches(f"rule {options.rule!r} combines no two predictions of this network; need one that does")
    drawing = {name: getattr(options, name) for name in fields("Model")}
    draw = model.sampler(**drawing, trajectory=guidance_diagnostics)
    size = batch_rows(min(batch_size, len(labels)), options.sampler, model.mesh.size)
    parts = []
    for start in range(0, len(labels), size):
        index = np.arange(start, start + size) % len(labels)  # rows past the end are dropped
        rows = {name: array[index] for name, array in (extra or {}).items()}
        _, seen = draw(index, labels[index], np.full(size, options.guidance), rows)
        parts.append(jax.tree.map(gather_rows, seen))
    found = jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(labels)].astype(np.float64), *parts)
    logsnrs = model.grid(options.num_steps, options.grid)
    return percentiles(found._replace(tilting=tilting_integral(found.tilting, logsnrs)), logsnrs)


def percentiles(found: GuidanceDiagnostics, logsnrs: Float[np.ndarray, " t"]) -> dict[str, Any]:
    """Returns means and percentiles over the samples of diagnostics [n, T]."""
    result: dict[str, Any] = {"num_samples": len(found.cosine), "logsnr": np.asarray(logsnrs, float).tolist()}
    for name, values in found._asdict().items():
        low, high = np.percentile(values, BAND, axis=0)
        result[name] = {"mean": values.mean(axis=0).tolist(), "low": low.tolist(), "high": high.tolist()}
    return result


def diagnose_settings(
    settings: Sequence[Setting],
    prepared: Callable[[Setting], tuple[Model, SampleOptions]],
    labels: Callable[[Setting], Int[np.ndarray, " n"]],
    batch_size: int = 256,
    check: Callable[[], object] = lambda: None,
) -> dict[str, dict[str, Any]]:
    """Returns {text of a setting: result of `diagnose`}, without those whose rule does not combine two predictions.

    prepared: setting → (model, options). labels: setting → those of the samples. check: called after each setting.
    """
    rows, found = [setting.row for setting in settings], {}
    for setting, row in zip(settings, rows, strict=True):
        name = setting_text(row, rows, (*varying_keys(), "seed"))
        try:
            found[name] = {"setting": row, **diagnose(*prepared(setting), labels(setting), batch_size)}
        except NoBranches as e:
            log.warning("%s: %s", name, e)
        check()
    return found


def first_labels(setting: Setting, num_samples: int, num_classes: int) -> Int[np.ndarray, " n"]:
    """Returns the labels of the first samples of an evaluation, at most 256 of them or one group."""
    size = group_size(setting.options.sampler)
    index = np.arange(max(min(NUM_DIAGNOSED, num_samples) // size, 1) * size)
    return policy_labels(setting.options, index, num_classes)
