"""What an evaluation measures: a run, or a cascade of two, in all requested settings."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from cfgjax.base.errors import UsageError
from cfgjax.base.storage import Place, place
from cfgjax.evaluation.features.networks import load_networks
from cfgjax.evaluation.frontier.frontier import Frontier
from cfgjax.evaluation.frontier.frontier_settings import make_settings
from cfgjax.evaluation.frontier.paired import baselines
from cfgjax.models.arguments import check_whole_number
from cfgjax.models.cascade import Cascade, first_stage
from cfgjax.models.guide import Guide
from cfgjax.models.model import Model
from cfgjax.models.weak import WeakRun
from cfgjax.runs.data_settings import DataSettings
from cfgjax.runs.sample_options import SampleOptions, axes
from cfgjax.runs.sampling_settings import MAX_BATCH_SIZE, MAX_SAMPLES, EvaluateSettings


@dataclasses.dataclass(frozen=True)
class FrontierPlan:
    """A frontier that is ready to be measured.

    work: locks its folder until `work.close`. evaluation: config.evaluate of the run, with changes. baseline: see
    `paired.baselines`.
    """

    work: Frontier
    evaluation: EvaluateSettings
    folder: Place
    baseline: Mapping[str, Any]

    @property
    def data(self) -> DataSettings:
        """config.data of the images that are measured."""
        return measured_data(self.work.model)


def plan_frontier(
    model: Model | Cascade,
    requested: Mapping[str, Sequence[Any]],
    *,
    workdir: str | Place,
    folder: str | Place | None = None,
    changes: Mapping[str, Any] | None = None,
    guide: Guide | None = None,
    weak: WeakRun | None = None,
    upsampler: Mapping[str, Any] | None = None,
    inception: str | Place | None = None,
    resize: str = "tf1",
    baseline: Mapping[str, Any] | None = None,
    neighbours: bool = True,
) -> FrontierPlan:
    """Returns the `FrontierPlan` of a model of the run in workdir. Raises UsageError for invalid values.

    requested: {option: values} of sampling, in place of those of config.evaluate. changes: {key: value} of
    config.evaluate; None changes nothing. folder: by default <workdir>/evaluation. inception, resize: see
    `load_networks`. guide, weak, upsampler, neighbours: see `Frontier`. baseline: see `paired.baselines`.

    Of a cascade, workdir is that of the base. The settings are those of the base; the number of samples, the feature
    network and the reference are those of the upsampler, whose images are measured.
    """
    base = first_stage(model)
    check_measurable(workdir, base)
    if guide is not None:
        guide.check(base.settings)
    given = {name: value for name, value in (changes or {}).items() if value is not None}
    evaluation = dataclasses.replace(getattr(model, "upsampler", model).settings.evaluate, **given)
    check_whole_number("num_samples", evaluation.num_samples, 2, MAX_SAMPLES)
    check_whole_number("batch_size", evaluation.batch_size, 1, MAX_BATCH_SIZE)
    options = axes(base.defaults.options, base.settings.evaluate.options, requested)
    settings = make_settings(with_rule_of_weak(options, requested, weak), base, guide, weak)
    baselines([setting.row for setting in settings], baseline or {})  # raises errors early
    network, judge = load_networks(evaluation, measured_data(model), inception=inception, resize=resize)
    out = place(workdir) / "evaluation" if folder is None else place(folder)
    work = Frontier(
        model,
        settings,
        workdir=workdir,
        folder=out,
        num_samples=evaluation.num_samples,
        batch_size=evaluation.batch_size,
        network=network,
        judge=judge,
        neighbours=neighbours,
        guide=guide,
        weak=weak,
        upsampler=upsampler,
    )
    return FrontierPlan(work, evaluation, out, baseline or {})


def with_rule_of_weak(
    options: Mapping[str, Sequence[Any]], requested: Mapping[str, Any], weak: WeakRun | None
) -> Mapping[str, Sequence[Any]]:
    """Returns {option: values}, with the rule autoguidance if there is a weak model and no rule is requested."""
    if weak is None or "rule" in requested or options["rule"] != (SampleOptions().rule,):
        return options
    return {**options, "rule": ("autoguidance()",)}


def check_measurable(workdir: str | Place, model: Model) -> None:
    """Raises UsageError if the samples of a model need more than a label."""
    if model.low_res_shape is not None:
        what = f"{workdir} is an upsampler's run"
        raise UsageError(f"{what}; it cannot be measured without its base: give --base=DIR --upsampler={workdir}")
    if model.own_inputs:
        inputs = ", ".join(model.own_inputs)
        what = f"the network takes {inputs} besides the label"
        raise UsageError(f"{workdir}: {what}; evaluations support only the label")


def measured_data(model: Model | Cascade) -> DataSettings:
    """Returns config.data of the images that are measured: of the upsampler of a cascade."""
    return getattr(model, "upsampler", model).settings.data
