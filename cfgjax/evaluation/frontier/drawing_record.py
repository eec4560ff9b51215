"""What samples were drawn with: the record of a frontier, and the protocol of a picture or a file of samples."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

import cfgjax
from cfgjax.base.storage import Place
from cfgjax.evaluation.frontier.cost import network_evaluations
from cfgjax.evaluation.frontier.frontier_settings import Setting
from cfgjax.evaluation.report.frontier_rows import COST, INTERVAL
from cfgjax.evaluation.report.protocol import interval_text, protocol
from cfgjax.models.binding import is_autoguided
from cfgjax.models.cascade import Cascade, first_stage
from cfgjax.models.guide import Guide
from cfgjax.models.model import Model
from cfgjax.models.sample_figures import with_networks
from cfgjax.models.weak import WeakRun
from cfgjax.runs.averages import step_digest
from cfgjax.runs.changes import changes_before
from cfgjax.runs.sample_options import SampleOptions

OF_MEASURING = ("features", "judge", "reference")  # parts of a protocol that samples alone do not have
MAX_LABELS_LISTED = 20  # labels


def drawing_record(
    model: Model | Cascade,
    workdir: str | Place,
    guide: Guide | None = None,
    weak: WeakRun | None = None,
    upsampler: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns what samples of a run in workdir depend on besides their settings, as JSON values.

    upsampler: `Cascade.upsampler_identity`, of whose base workdir is; None for a `Model`.
    """
    step, config = int(model.step or 0), model.settings.to_dict()
    changes = changes_before(workdir, step)
    if upsampler is not None:
        config["data"] = upsampler["data"]  # the images that are drawn
    return {
        "cfgjax": cfgjax.__version__,
        "checkpoint": {"step": step, "digest": step_digest(workdir, step)},
        "guide": guide and {"step": guide.step, "digest": guide.digest},
        "weak": weak and {"workdir": weak.workdir, **weak.identity},
        "quantisation": "uint8, rounded to nearest" if model.is_image else "none",
        **({} if upsampler is None else {"upsampler": upsampler}),
        **({"changes": changes} if changes else {}),
        "config": config,
    }


def samples_protocol(
    model: Model | Cascade,
    columns: Sequence[SampleOptions],
    labels: Int[np.ndarray, " n"],
    record: Mapping[str, Any],
    guide: Guide | None = None,
    weak: WeakRun | None = None,
) -> dict[str, str]:
    """Returns the `protocol` of samples of several settings, without the parts that only measuring has.

    labels: of the samples of each column. record: the `drawing_record`.
    """
    digest, rows = None if guide is None else guide.digest, []
    for options in columns:
        setting = Setting(options, "learned", digest, weak.identity if weak and is_autoguided(options.rule) else None)
        sizes = {"label_policy": labels_text(labels), "num_samples": len(labels)}
        rows.append({**setting.row, **sizes, **cost_columns(model, with_networks(options, guide, weak))})
    return {name: text for name, text in protocol(record, rows).items() if name not in OF_MEASURING}


def cost_columns(model: Model | Cascade, options: SampleOptions) -> dict[str, Any]:
    """Returns the columns of a row with the network evaluations of a sample and the interval of guidance.

    options: those of a setting, whose rule has its networks.
    """
    logsnrs = first_stage(model).grid(options.num_steps, options.grid)
    cost = network_evaluations(options.rule, options.sampler, logsnrs, options.guidance)
    return {COST: cost, INTERVAL: interval_text(options.rule, logsnrs)}


def labels_text(labels: Int[np.ndarray, " n"]) -> str:
    """Returns how many samples each label has, such as "4 each of 0, 1, 7"."""
    found, counts = np.unique(labels, return_counts=True)
    if len(set(counts.tolist())) > 1:
        return f"{counts.min()} to {counts.max()} each of {len(found)} labels"
    named = ", ".join(map(str, found)) if len(found) <= MAX_LABELS_LISTED else f"{len(found)} labels"
    return f"{counts[0]} each of {named}"
