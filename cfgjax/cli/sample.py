"""`cfgjax sample`."""

import io
from pathlib import Path

from absl import flags

from cfgjax.base.errors import UsageError
from cfgjax.base.exits import DONE
from cfgjax.base.files import writing
from cfgjax.base.paths import define_path
from cfgjax.cli.common import (
    begin_command,
    check_diagnostics,
    check_writable,
    class_list,
    define_sampling,
    no_arguments,
    numbers,
    place_flags,
    rule_of_weak,
    sampling_axes,
    shared_facts,
)
from cfgjax.cli.stages import check_stages, define_stages, load_model, upsampling_options
from cfgjax.runs.config import parse_flags
from cfgjax.runs.sample_options import axes as axes_of
from cfgjax.runs.sampling_settings import MAX_PER_CELL


def sample(argv):
    """--workdir=DIR --out=grid.png [--labels=0,1,2 --guidance=0,1,3 …]: draws a grid of labels by weights.

    With --base=DIR --upsampler=DIR it samples from a cascade.
    """
    given = define_flags(argv)
    no_arguments(parse_flags(given, argv))
    check_stages(given)
    check_picture(given.out)
    labels = None if given.labels is None else numbers("labels", given.labels, int)
    axes = sampling_axes(given, "sample")
    upsampling_options(given)  # raises errors before anything is read

    begin_command(given, f"sampling from {given.workdir or given.base}")

    from cfgjax.distributed.devices import open_devices
    from cfgjax.distributed.session import taking_part
    from cfgjax.runs.workdir import read_settings

    settings = read_settings(given.workdir or given.base)
    with taking_part(place_flags(given), shared_facts(given, settings), settings.cluster):
        open_devices()
        draw_picture(given, labels, axes)
    return DONE


def draw_picture(given, labels, axes):
    """Draws the image. The first process writes it."""
    import jax
    import numpy as np

    from cfgjax.evaluation.frontier.frontier_settings import resolved_combinations
    from cfgjax.evaluation.report.sample_figures import sample_figure
    from cfgjax.models.loading import load_guide, load_weak, use_average
    from cfgjax.runs.averages import find_average

    model = load_model(given, axes.get("ema", (None,))[0])
    guide = None if given.guide is None else load_guide(given.guide)
    source, defaults = getattr(model, "base", model), model.settings.sample
    weak = None if given.weak is None else load_weak(given.weak, source.settings, source.mesh)
    check_diagnostics(given, source)
    options = rule_of_weak(given, axes_of(defaults.options, given=axes))
    columns = resolved_combinations(options, source, guide, weak)
    labels = range(model.num_classes) if labels is None else labels
    names = rows(given.workdir or given.base, labels, model.num_classes)
    shown = dict(labels=labels, per_cell=given.per_cell or defaults.per_cell)
    workdir = given.workdir or given.base
    for ema in sorted({float(options.ema or 0) for options in columns} - {source.ema}):
        find_average(workdir, source.settings, source.step, ema)  # raises errors before anything is drawn
    shown["before"] = use = lambda options: use_average(source, workdir, options.ema)
    picture = sample_figure(model, columns, **shown, guide=guide, weak=weak)
    if jax.process_index() == 0:
        with writing(given.out) as new:
            picture.save(new)
        source = given.workdir or f"{given.base} and {given.upsampler}"
        print(f"wrote {given.out} ({picture.width}×{picture.height}) from step {model.step} of {source}")
        print(f"rows: {names}")
    if given.diagnostics:
        labels = np.repeat(np.asarray(labels), shown["per_cell"])
        write_diagnosis(given, model, columns, labels, use, guide=guide, weak=weak)


def write_diagnosis(given, model, columns, labels, use, **networks):
    """Writes what guidance does at each level of the samples of a picture, next to it. All processes take part."""
    import jax

    from cfgjax.evaluation.frontier.diagnose import diagnose_settings
    from cfgjax.evaluation.frontier.frontier_settings import Setting
    from cfgjax.evaluation.report.diagnostics_files import write_diagnostics
    from cfgjax.evaluation.report.sample_figures import with_networks

    settings = [Setting(options) for options in columns]

    def prepared(setting):
        use(setting.options)
        return model, with_networks(setting.options, **networks)

    diagnosed = diagnose_settings(settings, prepared, lambda setting: labels)
    if jax.process_index() == 0 and diagnosed:
        path = Path(given.out)
        record = {"workdir": str(given.workdir), "step": model.step, "ema": [options.ema for options in columns]}
        files = write_diagnostics(path.with_name(f"{path.stem}_diagnostics"), diagnosed, record)
        print(f"wrote {', '.join(files)} in {path.absolute().parent}")


def rows(workdir, labels, num_classes):
    """Returns the labels of the image's rows as text, with class names if the run in workdir recorded them."""
    from cfgjax.runs.workdir import read_classes

    classes = read_classes(workdir)
    known = classes is not None and len(classes) == num_classes and all(0 <= label < num_classes for label in labels)
    return class_list(labels, classes if known else None)


def define_flags(argv):
    """Returns the flags of the command."""
    given = flags.FlagValues()
    define_sampling(given, "sample")
    define_path("out", "grid.png", "Image file to write: .png, .jpg or .webp.", flag_values=given)
    flags.DEFINE_list("labels", None, "Classes, one row each; by default all.", flag_values=given)
    what = "Also write what guidance does at each level, to OUT_diagnostics.json and .png."
    flags.DEFINE_bool("diagnostics", False, what, flag_values=given)
    what = "Number of samples for each label and weight."
    flags.DEFINE_integer("per_cell", None, what, flag_values=given, lower_bound=1, upper_bound=MAX_PER_CELL)
    define_stages(given)
    return given


def check_picture(path):
    """Raises UsageError if no image can be written to path."""
    from PIL import Image

    kind = Image.registered_extensions().get(Path(path).suffix.lower())
    try:
        Image.new("RGB", (1, 1)).save(io.BytesIO(), kind or "none")
    except Exception as e:  # KeyError: an unknown format; ValueError or OSError: no colour or no writer
        raise UsageError(f"--out={path}: the ending must be that of a colour image format, such as .png") from e
    check_writable("out", path)
