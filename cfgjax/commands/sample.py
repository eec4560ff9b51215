"""`cfgjax sample`."""

from pathlib import Path

from absl import flags

from cfgjax.commands.common import DONE, check_writable, define_sampling, no_arguments, numbers, required, weights
from cfgjax.config import parse_flags
from cfgjax.errors import UsageError


def sample(argv):
    """--workdir=DIR --out=grid.png [--labels=0,1,2 --guidance=0,1,3 …]: draws rows of labels by columns of w."""
    given = flags.FlagValues()
    define_sampling(given)
    flags.DEFINE_string("out", "grid.png", "Picture to write: .png, .jpg, .webp.", flag_values=given)
    flags.DEFINE_list("labels", None, "Classes, a row each; all by default.", flag_values=given)
    flags.DEFINE_integer("per_cell", None, "Samples of each label and weight.", flag_values=given, lower_bound=1)
    flags.DEFINE_integer("num_steps", None, "Network calls T.", flag_values=given, lower_bound=2)
    flags.DEFINE_float("v", None, "Variance interpolation of ancestral, 0 … 1.", flag_values=given)
    flags.DEFINE_integer("seed", 0, "Seed of the noise.", flag_values=given)
    flags.DEFINE_float("ema", None, "Rate of the averaged parameters; 0 for none.", flag_values=given)
    no_arguments(parse_flags(given, argv))
    required(given, "workdir")
    check_picture(given.out)
    labels = None if given.labels is None else numbers("labels", given.labels, int)
    guidance = weights(given)

    import cfgjax
    from cfgjax.evaluation.figures import sample_figure
    from cfgjax.model import guidance_weights

    if guidance is not None:
        guidance = guidance_weights(guidance, None, len(guidance))
    model = cfgjax.load(given.workdir, step=given.step, ema=given.ema)
    pictures = model.config.sample
    picture = sample_figure(
        model,
        labels=range(model.num_classes) if labels is None else labels,
        guidance=pictures.guidance if guidance is None else guidance,
        per_cell=given.per_cell or pictures.per_cell,
        seed=given.seed,
        **{name: given[name].value for name in ("num_steps", "sampler", "v", "eta")},
    )
    picture.save(given.out)
    print(f"wrote {given.out} ({picture.width}×{picture.height}) from step {model.step} of {given.workdir}")
    return DONE


def check_picture(path):
    """Raises UsageError where a picture cannot be written to path."""
    from PIL import Image

    written = [ending for ending, kind in Image.registered_extensions().items() if kind in Image.SAVE]
    if Path(path).suffix.lower() not in written:
        raise UsageError(f"--out={path}: the ending must be that of a picture, such as .png")
    check_writable("out", path)
