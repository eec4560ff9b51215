"""`cfgjax sample`."""

import io
from pathlib import Path

from absl import flags

from cfgjax.base.errors import UsageError
from cfgjax.base.exits import DONE
from cfgjax.base.files import writing
from cfgjax.base.paths import define_path
from cfgjax.cli.common import (
    begin,
    check_writable,
    class_list,
    classifier_scales,
    define_sampling,
    mesh_of,
    no_arguments,
    numbers,
    place,
    required,
    shared_facts,
    timesteps_of,
    weights,
)
from cfgjax.runs.config import parse_flags
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
    guidance, scales = weights(given), classifier_scales(given)
    for name in ("num_steps", "upsampler_num_steps"):
        timesteps_of(given, name)

    begin(given, f"sampling from {given.workdir or given.base}")

    from cfgjax.distributed.devices import open_devices
    from cfgjax.distributed.session import taking_part
    from cfgjax.runs.workdir import read_settings

    settings = read_settings(given.workdir or given.base)
    with taking_part(place(given), shared_facts(given, settings), settings.cluster):
        open_devices()
        draw(given, labels, guidance, scales)
    return DONE


def draw(given, labels, guidance, scales):
    """Draws the image. The first process writes it."""
    import jax

    from cfgjax.evaluation.report.figures import sample_figure
    from cfgjax.models.arguments import guidance_weights
    from cfgjax.models.options import sampler_value

    if guidance is not None:
        guidance = guidance_weights(guidance, None, len(guidance)).tolist()
    model, options = load_stages(given)
    if scales is not None:
        from cfgjax.models.guide import load_guide

        options |= {"guide": load_guide(given.guide), "classifier_form": given.classifier_form}
    if given.num_steps is not None:
        options["num_steps"] = timesteps_of(given, "num_steps")
    defaults = model.settings.sample
    labels = range(model.num_classes) if labels is None else labels
    names = rows(given.workdir or given.base, labels, model.num_classes)
    picture = sample_figure(
        model,
        labels=labels,
        guidance=defaults.guidance if guidance is None else guidance,
        classifier_scale=(None,) if scales is None else scales,
        per_cell=given.per_cell or defaults.per_cell,
        seed=given.seed,
        sampler=sampler_value(given.sampler, defaults, given.v, given.eta),
        **options,
    )
    if jax.process_index() == 0:
        with writing(given.out) as new:
            picture.save(new)
        source = given.workdir or f"{given.base} and {given.upsampler}"
        print(f"wrote {given.out} ({picture.width}×{picture.height}) from step {model.step} of {source}")
        print(f"rows: {names}")


def rows(workdir, labels, num_classes):
    """Returns the labels of the image's rows as text, with class names if the run in workdir recorded them."""
    from cfgjax.runs.workdir import read_classes

    classes = read_classes(workdir)
    known = classes is not None and len(classes) == num_classes and all(0 <= label < num_classes for label in labels)
    return class_list(labels, classes if known else None)


def define_flags(argv):
    """Returns the flags of the command."""
    given = flags.FlagValues()
    define_sampling(given)
    define_path("out", "grid.png", "Image file to write: .png, .jpg or .webp.", flag_values=given)
    flags.DEFINE_list("labels", None, "Classes, one row each; by default all.", flag_values=given)
    what = "Number of samples for each label and weight."
    flags.DEFINE_integer("per_cell", None, what, flag_values=given, lower_bound=1, upper_bound=MAX_PER_CELL)
    flags.DEFINE_string(
        "num_steps", None, "Number of sampling steps T, or timesteps such as ddim25 or 10+15+20.", flag_values=given
    )
    flags.DEFINE_float("v", None, "Variance interpolation v of ancestral, 0 … 1.", flag_values=given)
    flags.DEFINE_integer("seed", 0, "Seed of the noise.", flag_values=given)
    flags.DEFINE_float("ema", None, "EMA rate; 0 for the parameters without averaging.", flag_values=given)
    define_path("base", None, "Workdir of a cascade's base model, to which --step and --ema apply.", flag_values=given)
    define_path("upsampler", None, "Workdir of a cascade's upsampler.", flag_values=given)
    flags.DEFINE_string(
        "upsampler_num_steps", None, "Number of sampling steps of the upsampler, or timesteps.", flag_values=given
    )
    flags.DEFINE_float("low_res_logsnr", None, "λ of the noise added to the upsampler's input.", flag_values=given)
    return given


def check_stages(given):
    """Raises UsageError unless the flags name either a model or both stages of a cascade."""
    if given.base is None and given.upsampler is None:
        for name in ("upsampler_num_steps", "low_res_logsnr"):
            if given[name].value is not None:
                raise UsageError(f"--{name} needs --base and --upsampler")
        return required(given, "workdir")
    if given.workdir is not None:
        raise UsageError("give either --workdir (one model) or --base and --upsampler (a cascade)")
    return required(given, "base", "upsampler")


def load_stages(given):
    """Returns (a `Model` or `Cascade`, options for its `sample`)."""
    import cfgjax

    if given.base is None:
        return cfgjax.load(given.workdir, step=given.step, ema=given.ema, mesh=mesh_of(given)), {}

    from cfgjax.models.cascade import load_cascade

    upsampling = {}
    if given.upsampler_num_steps is not None:
        upsampling["num_steps"] = timesteps_of(given, "upsampler_num_steps")
    if given.low_res_logsnr is not None:
        upsampling["low_res_logsnr"] = given.low_res_logsnr
    stages = load_cascade(given.base, given.upsampler, step=given.step, ema=given.ema, mesh=mesh_of(given))
    return stages, {"upsampling": upsampling}


def check_picture(path):
    """Raises UsageError if no image can be written to path."""
    from PIL import Image

    kind = Image.registered_extensions().get(Path(path).suffix.lower())
    try:
        Image.new("RGB", (1, 1)).save(io.BytesIO(), kind or "none")
    except Exception as e:  # KeyError: an unknown format; ValueError or OSError: no colour or no writer
        raise UsageError(f"--out={path}: the ending must be that of a colour image format, such as .png") from e
    check_writable("out", path)
