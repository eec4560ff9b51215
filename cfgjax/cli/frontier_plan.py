"""What `cfgjax evaluate` measures: a run, or a cascade of two, in all requested settings."""

from pathlib import Path

from cfgjax.base.errors import UsageError
from cfgjax.cli.common import check_diagnostics, plan_of, rule_of_weak, sampling_axes
from cfgjax.cli.stages import load_model
from cfgjax.runs.sample_options import axes


def plan_frontier(given):
    """Returns the (`Frontier`, config.evaluate with flags, folder). Raises UsageError for invalid values.

    Of a cascade, the settings are those of the base. The number of samples, the feature network and the reference are
    those of the upsampler, whose images are measured.
    """
    from cfgjax.evaluation.features.networks import load_networks
    from cfgjax.evaluation.frontier.frontier import Frontier
    from cfgjax.evaluation.frontier.frontier_settings import make_settings
    from cfgjax.evaluation.frontier.paired import baselines, read_baseline
    from cfgjax.models.cascade import first_stage
    from cfgjax.models.loading import load_guide, load_weak
    from cfgjax.runs.workdir import read_settings

    workdir = given.workdir or given.base
    swept, requested = read_settings(workdir).evaluate.options, sampling_axes(given, "evaluate")
    model = load_model(given, axes({}, swept, requested)["ema"][0])
    base, is_cascade = first_stage(model), given.base is not None
    check_measurable(workdir, base)
    plan = plan_of(given, model.upsampler.settings if is_cascade else base.settings)
    guide = None
    if given.guide is not None:
        guide = load_guide(given.guide)
        guide.check(base.settings)
    weak = None if given.weak is None else load_weak(given.weak, base.settings, base.mesh)
    check_diagnostics(given, base)
    options = rule_of_weak(given, axes(base.defaults.options, swept, requested))
    settings = make_settings(options, base, guide, weak)
    baselines([setting.row for setting in settings], read_baseline(given.baseline))  # raises errors early
    network, judge = load_networks(plan, measured_data(model), inception=given.inception, resize=given.resize)
    folder = Path(given.out or Path(workdir) / "evaluation")
    work = Frontier(
        model,
        settings,
        workdir=workdir,
        folder=folder,
        num_samples=plan.num_samples,
        batch_size=plan.batch_size,
        network=network,
        judge=judge,
        neighbours=given.neighbours,
        guide=guide,
        weak=weak,
        upsampler=model.upsampler_identity(given.upsampler) if is_cascade else None,
    )
    return work, plan, folder


def check_measurable(workdir, model):
    """Raises UsageError if the samples of a model need more than a label."""
    if model.low_res_shape is not None:
        what = f"{workdir} is an upsampler's run"
        raise UsageError(f"{what}; it cannot be measured without its base: give --base=DIR --upsampler={workdir}")
    if model.own_inputs:
        inputs = ", ".join(model.own_inputs)
        what = f"the network takes {inputs} besides the label"
        raise UsageError(f"{workdir}: {what}; evaluations support only the label")


def measured_data(model):
    """Returns config.data of the images that are measured: of the upsampler of a cascade."""
    return getattr(model, "upsampler", model).settings.data
