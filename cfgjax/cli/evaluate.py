"""`cfgjax evaluate`: measures a run's frontier, reference statistics, bits per dimension, or images of others."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from cfgjax.base.errors import UsageError
from cfgjax.base.exits import DONE, PREEMPTED
from cfgjax.base.paths import define_path
from cfgjax.base.progress import log
from cfgjax.base.storage import place
from cfgjax.cli.common import (
    PLAN_FLAGS,
    begin_command,
    check_diagnostics,
    check_specs,
    check_writable,
    config_printed,
    define_sampling,
    no_arguments,
    place_flags,
    plan_of,
    required,
    sampling_axes,
    shared_facts,
)
from cfgjax.cli.evaluate_bits import evaluate_bits
from cfgjax.cli.evaluate_samples import evaluate_samples
from cfgjax.cli.stages import check_stages, define_stages, load_model, upsampling_options
from cfgjax.distributed.cpu_devices import use_cores
from cfgjax.runs.config import define_flag, parse_flags
from cfgjax.runs.sample_options import axes, fields
from cfgjax.runs.sampling_settings import MAX_BATCH_SIZE, MAX_SAMPLES

if TYPE_CHECKING:
    from cfgjax.evaluation.frontier.plan import FrontierPlan
    from cfgjax.evaluation.frontier.result import FrontierResult
    from cfgjax.training.interrupt import StopFlag

NETWORK_FLAGS = {"workdir", "out", "features", "classifier", "inception", "resize"}
FRONTIER = "a frontier"  # what is measured unless a flag selects something else
PROCESSES = {"coordinator", "num_processes", "process_id", "mesh"}
MODE_FLAGS = {  # flags that each mode uses
    FRONTIER: NETWORK_FLAGS
    | set(fields("evaluate"))
    | {"scale", "step", "num_samples", "batch_size", "reference", "neighbours", "keep_samples", "guide", "weak"}
    | {"baseline", "diagnostics", "base", "upsampler", "upsampler_num_steps", "low_res_logsnr"}
    | PROCESSES,
    "--make_reference": NETWORK_FLAGS | {"config", "split"},
    "--bits_per_dim": {"workdir", "out", "guidance", "scale", "step", "num_steps", "sampler", "ema", "seed"}
    | {"batch_size", "images", "spacing", "logsnr_max"},
    "--samples": NETWORK_FLAGS - {"workdir"} | {"samples", "reference", "config", "num_samples", "neighbours"},
}


def evaluate(argv: list[str]) -> int:
    """--workdir=DIR [--guidance=0,1 --num_samples=N …]: measures samples of every w; writes a table and a plot."""
    given = define_flags(argv)
    no_arguments(parse_flags(given, argv))
    if config_printed(given):
        return DONE
    switched = [name for name in ("make_reference", "bits_per_dim", "samples") if given[name].value]
    if len(switched) > 1:
        raise UsageError(f"--{switched[0]} and --{switched[1]} are both given; give one")
    mode = f"--{switched[0]}" if switched else FRONTIER
    for name in given:
        users = [user for user, used in MODE_FLAGS.items() if name in used]
        if given[name].present and users and mode not in users:
            need = f"without {' or '.join(users)}" if mode == FRONTIER else f"with {mode}"
            raise UsageError(f"--{name} has no effect {need}")
    sampling_axes(given, "evaluate")  # raises errors before anything is read
    if mode == FRONTIER:
        check_stages(given)
        upsampling_options(given)
        if given.base is not None:
            required(given, "out")
    if mode == "--bits_per_dim":
        required(given, "workdir")
    return {
        "--make_reference": write_reference,
        "--bits_per_dim": evaluate_bits,
        "--samples": evaluate_samples,
        FRONTIER: frontier,
    }[mode](given)


def define_flags(argv: list[str]) -> flags.FlagValues:
    """Returns the flags of the command."""
    given = flags.FlagValues()
    define_sampling(given, "evaluate")
    define_stages(given)
    define = lambda kind, **bounds: functools.partial(kind, flag_values=given, **bounds)
    text, path = define(flags.DEFINE_string), define(define_path)
    switch, count, real = map(define, (flags.DEFINE_bool, flags.DEFINE_integer, flags.DEFINE_float))
    count(
        "num_samples",
        None,
        "Number of samples for each setting; by default config.evaluate.num_samples.",
        lower_bound=2,
        upper_bound=MAX_SAMPLES,
    )
    count(
        "batch_size",
        None,
        "Samples per call on each device; by default config.evaluate.batch_size.",
        lower_bound=1,
        upper_bound=MAX_BATCH_SIZE,
    )
    text("features", None, "Feature network: classifier, inception or mixture; by default config.evaluate.features.")
    path(
        "classifier", None, "Workdir of a classifier, for features or accuracy; by default config.evaluate.classifier."
    )
    path("inception", None, "Weight file of Inception; by default the one that cfgjax download inception wrote.")
    flags.DEFINE_enum(
        "resize",
        "tf1",
        ["tf1", "half_pixel"],
        "How images are resized for Inception: as TensorFlow 1 does (tf1), or PyTorch (half_pixel).",
        flag_values=given,
    )
    path(
        "reference",
        None,
        "Reference statistics, .npz; by default config.evaluate.reference, or else those of the training data.",
    )
    path(
        "out", None, "Folder to write, by default <workdir>/evaluation; with --make_reference, the .npz file to write."
    )
    switch("neighbours", True, "Measure precision, recall and all intervals, which keeps all features in memory.")
    text(
        "baseline",
        None,
        "Setting with which the others are compared, such as guidance=0; by default the first with w = 0.",
    )
    switch(
        "diagnostics",
        False,
        "Also measure what guidance does at each level, for the first 256 samples; writes diagnostics.json and .png.",
    )
    switch("keep_samples", True, "Keep the samples in --out after measuring them.")
    switch("make_reference", False, "Instead of the frontier: write the reference statistics of the data to --out.")
    switch(
        "bits_per_dim",
        False,
        "Instead of the frontier: measure the likelihood of held-out data, in bits per dimension.",
    )
    path("images", None, "With --bits_per_dim: held-out data, .npz; by default the holdout split of the run's data.")
    text(
        "spacing", "uniform", "With --bits_per_dim: spacing of the levels λ: a schedule such as uniform, or timesteps."
    )
    real(
        "logsnr_max",
        None,
        "With --bits_per_dim: largest λ, at which the decoder applies; by default that of the run's process.",
    )
    path(
        "samples",
        None,
        "Instead of samples of a run: images of another program, a folder or an .npz (arr_0 images, arr_1 labels).",
    )
    text(
        "split", None, "With --make_reference: split of the data, train, holdout or all; by default config.data.split."
    )
    define_flag(given, argv)
    return given


def frontier(given: flags.FlagValues) -> int:
    """Evaluates the run in --workdir, also with several processes. Returns the exit code."""
    begin_command(given, f"evaluating {given.workdir or given.base}")

    from cfgjax.distributed.devices import open_devices
    from cfgjax.distributed.session import taking_part
    from cfgjax.runs.workdir import read_settings
    from cfgjax.training.interrupt import StopRequest

    check_specs(sampling_axes(given, "evaluate"))
    settings = read_settings(given.workdir or given.base)
    own = place_flags(given), shared_facts(given, settings), settings.cluster
    with StopRequest() as stop, taking_part(*own):
        if given.mesh is None:
            use_cores()
        open_devices()
        return measured(given, stop)


def measured(given: flags.FlagValues, stop: "StopFlag") -> int:
    """Measures the frontier until it is done or `stop`, a `StopRequest`, has a signal. Returns the exit code."""
    from cfgjax.base.plots_extra import require_matplotlib
    from cfgjax.distributed import collectives
    from cfgjax.evaluation.frontier.diagnose import diagnose_settings, first_labels
    from cfgjax.evaluation.frontier.frontier import Stopped
    from cfgjax.evaluation.frontier.result import measure_frontier
    from cfgjax.evaluation.report.frontier_table import line

    require_matplotlib("frontier.png needs")
    plan = frontier_plan(given)
    with contextlib.closing(plan.work) as work:

        def check() -> None:
            if collectives.anywhere(stop.signal):
                raise Stopped

        try:
            found = measure_frontier(plan, check, lambda progress, rows: progress.say(line(rows)))
            diagnosed = {}
            if given.diagnostics:
                labels = lambda setting: first_labels(setting, work.num_samples, work.model.num_classes)
                diagnosed = diagnose_settings(work.settings, work.prepared, labels, plan.evaluation.batch_size, check)
        except Stopped:
            cause = stop.signal or "another process was stopped"
            log.info("%s: the samples drawn so far are saved in %s; the same command resumes", cause, plan.folder)
            return PREEMPTED
        if found is not None:
            finish_frontier(given, plan, found, diagnosed)
    return DONE


def frontier_plan(given: flags.FlagValues) -> "FrontierPlan":
    """Returns the `FrontierPlan` of the flags. Raises UsageError for invalid values."""
    from cfgjax.evaluation.frontier.paired import read_baseline
    from cfgjax.evaluation.frontier.plan import plan_frontier, with_rule_of_weak
    from cfgjax.models.binding import rule_value
    from cfgjax.models.cascade import Cascade, first_stage
    from cfgjax.models.loading import load_guide, load_weak
    from cfgjax.runs.workdir import read_settings

    workdir, requested = given.workdir or given.base, sampling_axes(given, "evaluate")
    model = load_model(given, axes({}, read_settings(workdir).evaluate.options, requested)["ema"][0])
    base = first_stage(model)
    weak = None if given.weak is None else load_weak(given.weak, base.settings, base.mesh)
    options = with_rule_of_weak(axes(base.defaults.options, base.settings.evaluate.options, requested), requested, weak)
    check_diagnostics(given, base, [rule_value(rule) for rule in options["rule"]])
    return plan_frontier(
        model,
        requested,
        workdir=workdir,
        folder=given.out,
        changes={name: given[name].value for name in PLAN_FLAGS},
        guide=None if given.guide is None else load_guide(given.guide),
        weak=weak,
        upsampler=model.upsampler_identity(given.upsampler) if isinstance(model, Cascade) else None,
        inception=given.inception,
        resize=given.resize,
        baseline=read_baseline(given.baseline),
        neighbours=given.neighbours,
    )


def finish_frontier(
    given: flags.FlagValues, plan: "FrontierPlan", found: "FrontierResult", diagnosed: Mapping[str, Mapping[str, Any]]
) -> None:
    """Writes the frontier's files, prints its tables, and deletes the samples if requested."""
    from cfgjax.evaluation.report.diagnostics_files import write_diagnostics

    written = found.write(plan)
    if diagnosed:
        written += write_diagnostics(plan.folder / "diagnostics", diagnosed, {"protocol": found.protocol})
    if not given.keep_samples:
        plan.work.remove_samples()
    print("\n".join(found.lines()))
    print(f"wrote {', '.join(written)} in {plan.folder}")


def write_reference(given: flags.FlagValues) -> int:
    """Writes the reference statistics of a data source to --out. Returns the exit code."""
    required(given, "out")
    if (given.workdir is None) == (given.config is None):
        raise UsageError("--make_reference needs either --workdir or --config, for its data")
    if place(given.out).suffix != ".npz":
        raise UsageError(f"--out={given.out}: the ending must be .npz")
    check_writable("out", given.out)
    begin_command(given, f"computing reference statistics of {given.workdir or 'the data of --config'}")

    from cfgjax.base.progress import Progress
    from cfgjax.data.sources.registry import open_source
    from cfgjax.distributed.devices import open_devices
    from cfgjax.evaluation.features.networks import load_networks
    from cfgjax.evaluation.features.reference import of_dataset
    from cfgjax.runs.settings import Settings
    from cfgjax.runs.workdir import read_settings

    settings = Settings.from_config(given.config) if given.config else read_settings(given.workdir)
    plan, data = plan_of(given, settings), settings.data
    if given.split is not None:
        data = dataclasses.replace(data, split=given.split)
    use_cores()
    open_devices()
    network, _ = load_networks(plan, data, inception=given.inception, resize=given.resize)
    dataset = open_source(data)
    origin = f"{len(dataset):,} examples of {data.source}, split {data.split}"
    with Progress("reference", "image", len(dataset)) as seen:
        reference = of_dataset(dataset, network, origin, seen.advance)
    reference.save(given.out)
    print(f"wrote {given.out}: {network.name}'s statistics of {origin}; digest {reference.digest[:16]}")
    return DONE
