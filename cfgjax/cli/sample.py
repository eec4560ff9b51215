"""`cfgjax sample`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from cfgjax.base.exits import DONE
from cfgjax.base.paths import define_path
from cfgjax.base.storage import absolute, place
from cfgjax.cli import sample_outputs as outputs
from cfgjax.cli.common import (
    begin_command,
    check_diagnostics,
    check_specs,
    class_list,
    define_sampling,
    no_arguments,
    place_flags,
    sampling_axes,
    shared_facts,
)
from cfgjax.cli.stages import check_stages, define_stages, load_model, upsampling_options
from cfgjax.distributed.cpu_devices import use_cores
from cfgjax.runs.config import parse_flags
from cfgjax.runs.sample_options import SampleOptions
from cfgjax.runs.sample_options import axes as axes_of
from cfgjax.runs.sampling_settings import MAX_PER_CELL

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Int

    from cfgjax.models.model import Model

MAX_DRAWN = 10**6


def sample(argv: list[str]) -> int:
    """--workdir=DIR --out=grid.png [--labels=0,1,2 --guidance=0,1,3 …]: draws a grid, an animation, or single images.

    With --base=DIR --upsampler=DIR it samples from a cascade.
    """
    given = define_flags(argv)
    no_arguments(parse_flags(given, argv))
    check_stages(given)
    kind = outputs.kind_of_output(given.out)
    axes = sampling_axes(given, "sample")
    upsampling_options(given)  # raises errors before anything is read

    begin_command(given, f"sampling from {given.workdir or given.base}")

    from cfgjax.data.sources.registry import check_labels
    from cfgjax.distributed.devices import open_devices
    from cfgjax.distributed.session import taking_part
    from cfgjax.models.class_names import known_classes, label_of
    from cfgjax.runs.workdir import read_settings

    check_specs(axes)
    workdir = given.workdir or given.base
    settings = read_settings(workdir)
    outputs.check_single_images(kind, given.out, settings.data)
    num_classes, classes = settings.data.num_classes, known_classes(workdir, settings)
    labels = range(num_classes) if given.labels is None else [label_of(word, classes) for word in given.labels]
    check_labels(labels, num_classes)
    with taking_part(place_flags(given), shared_facts(given, settings), settings.cluster):
        if given.mesh is None:
            use_cores()
        open_devices()
        draw_output(given, kind, labels, classes, axes)
    return DONE


def draw_output(
    given: flags.FlagValues,
    kind: str,
    labels: Sequence[int],
    classes: Sequence[str] | None,
    axes: Mapping[str, Sequence[Any]],
) -> None:
    """Draws the samples. The first process writes them."""
    import jax

    from cfgjax.evaluation.frontier.drawing_record import drawing_record, samples_protocol
    from cfgjax.evaluation.frontier.plan import with_rule_of_weak
    from cfgjax.models.cascade import Cascade, first_stage
    from cfgjax.models.loading import load_guide, load_weak, use_average
    from cfgjax.models.resolving import resolved_combinations
    from cfgjax.models.sample_figures import column_names, draw_columns, sample_figure, sample_frames
    from cfgjax.runs.averages import find_average

    model = load_model(given, axes.get("ema", (None,))[0])
    guide = None if given.guide is None else load_guide(given.guide)
    upsampler = model.upsampler_identity(given.upsampler) if isinstance(model, Cascade) else None
    source = first_stage(model)
    defaults = source.defaults
    weak = None if given.weak is None else load_weak(given.weak, source.settings, source.mesh)
    options = with_rule_of_weak(axes_of(defaults.options, given=axes), axes, weak)
    columns = resolved_combinations(options, source, guide, weak)
    check_diagnostics(given, source, [options.rule for options in columns])
    outputs.check_output(kind, given, len(columns))
    workdir = given.workdir or given.base
    for ema in sorted({float(options.ema or 0) for options in columns} - {source.ema}):
        find_average(workdir, source.settings, source.step, ema)  # raises errors before anything is drawn
    use = lambda options: use_average(source, workdir, options.ema)
    per_cell = given.per_cell or defaults.per_cell
    sizes: list[tuple[SampleOptions, str]] = []  # effective ones of the columns with groups
    on_ess = lambda options, text: sizes.append((options, text))
    drawing: dict[str, Any] = {"guide": guide, "weak": weak, "before": use, "on_ess": on_ess}
    samples = labels_of_samples(given, labels, per_cell, [options.sampler for options in columns])
    record = drawing_record(model, workdir, guide, weak, upsampler)
    if kind == "picture":
        picture = sample_figure(model, columns, labels=labels, per_cell=per_cell, **drawing)
        write = lambda card: outputs.write_picture(given.out, picture, card)
    elif kind == "animation":
        frames = sample_frames(source, columns, labels=labels, per_cell=per_cell, **drawing)
        write = lambda card: outputs.write_animation(given.out, frames, card)
    else:
        drawn = draw_columns(model, columns, samples, **drawing)
        names = column_names(columns, "w={:g}".format, "_")
        write = lambda card: outputs.WRITERS_OF_SAMPLES[kind](given.out, drawn, samples, names, card)
    card = samples_protocol(model, columns, samples, record, guide, weak)
    told = named_sizes(columns, sizes)
    if told:
        card["effective sample size"] = "; ".join(told)
    if jax.process_index() == 0:
        origin = given.workdir or f"{given.base} and {given.upsampler}"
        print(f"wrote {write(card)} from step {model.step} of {origin}")
        print(f"rows: {class_list(labels, classes)}")
        for line in told:
            print(f"effective sample size: {line}")
    if given.diagnostics:
        write_diagnosis(given, source, columns, samples, use, card, guide=guide, weak=weak)


def labels_of_samples(
    given: flags.FlagValues, labels: Sequence[int], per_cell: int, samplers: Sequence[Any]
) -> 'Int[np.ndarray, " n"]':
    """Returns the label of each sample: per_cell of each label, or --num_samples for which the labels take turns.

    Raises UsageError unless they are complete groups of every sampler.
    """
    import numpy as np

    from cfgjax.models.groups import check_divisible, in_groups

    flag, number = "num_samples", given.num_samples
    if number is None:
        flag, number = "per_cell", per_cell
    for sampler in samplers:
        check_divisible(f"--{flag}={number} is", number, sampler)
    if given.num_samples is None:
        return np.repeat(np.asarray(labels), per_cell)
    return in_groups(np.asarray(labels), given.num_samples, samplers)


def named_sizes(columns: Sequence[SampleOptions], sizes: Iterable[tuple[SampleOptions, str]]) -> list[str]:
    """Returns the text of each (options, text of an ESS), with the name of its column if there are several columns."""
    from cfgjax.models.sample_figures import column_names

    names = column_names(columns, "w={:g}".format, ", ")
    named = [(names[[own is options for own in columns].index(True)], text) for options, text in sizes]
    return [text if len(columns) == 1 else f"{name}: {text}" for name, text in named]


def write_diagnosis(
    given: flags.FlagValues,
    model: "Model",
    columns: Sequence[SampleOptions],
    labels: 'Int[np.ndarray, " n"]',
    use: Callable[[SampleOptions], object],
    card: Mapping[str, str],
    **networks: Any,
) -> None:
    """Writes what guidance does at each level of the samples of a picture, next to it. All processes take part."""
    import jax

    from cfgjax.evaluation.frontier.diagnose import diagnose_settings
    from cfgjax.evaluation.frontier.frontier_settings import Setting
    from cfgjax.evaluation.report.diagnostics_files import write_diagnostics
    from cfgjax.models.sample_figures import with_networks

    settings = [Setting(options) for options in columns]

    def prepared(setting: Setting) -> "tuple[Model, SampleOptions]":
        use(setting.options)
        return model, with_networks(setting.options, **networks)

    diagnosed = diagnose_settings(settings, prepared, lambda setting: labels)
    if jax.process_index() == 0 and diagnosed:
        path = place(given.out)
        record: dict[str, Any] = {
            "workdir": str(given.workdir),
            "step": model.step,
            "ema": [options.ema for options in columns],
        }
        record["protocol"] = card
        files = write_diagnostics(path.with_name(f"{path.stem}_diagnostics"), diagnosed, record)
        print(f"wrote {', '.join(files)} in {absolute(path).parent}")


def define_flags(argv: list[str]) -> flags.FlagValues:
    """Returns the flags of the command."""
    given = flags.FlagValues()
    define_sampling(given, "sample")
    what = "File to write: .png (a grid), .gif (an animation from noise to image), .npz (arr_0 samples, arr_1 labels); "
    what += "without an ending, a folder of single images. Stored with its protocol."
    define_path("out", "grid.png", what, flag_values=given)
    flags.DEFINE_list(
        "labels",
        None,
        "Classes by number or name, separated by commas, a row for each; by default all.",
        flag_values=given,
    )
    what = "Number of samples in an .npz or a folder. The --labels take turns. By default, --per_cell for each label."
    flags.DEFINE_integer("num_samples", None, what, flag_values=given, lower_bound=1, upper_bound=MAX_DRAWN)
    what = "Also measure what guidance does at each level; writes OUT_diagnostics.json and .png."
    flags.DEFINE_bool("diagnostics", False, what, flag_values=given)
    what = "Number of samples for each label and setting; by default config.sample.per_cell of the run."
    flags.DEFINE_integer("per_cell", None, what, flag_values=given, lower_bound=1, upper_bound=MAX_PER_CELL)
    define_stages(given)
    return given
