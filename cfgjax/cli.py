"""The commands: `cfgjax train`, `cfgjax sample`."""

import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from absl import flags

import cfgjax
from cfgjax.errors import UsageError, choose

DONE, FAILED, BAD_USAGE, PREEMPTED = 0, 1, 2, 75


def train(argv):
    """--config=FILE --workdir=DIR [--config.key=value …]: trains, or goes on with, the run in DIR."""
    from cfgjax.config import define_flag, parse_flags
    from cfgjax.training import loop

    given = flags.FlagValues()
    define_flag(given, argv)
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=given)
    no_arguments(parse_flags(given, argv))
    required(given, "config", "workdir")
    return DONE if loop.train(given.config, given.workdir) else PREEMPTED


def sample(argv):
    """--workdir=DIR --out=grid.png [--labels=0,1,2 --guidance=0,1,3 …]: draws rows of labels by columns of w."""
    from cfgjax.config import parse_flags

    given = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=given)
    flags.DEFINE_string("out", "grid.png", "Picture to write: .png, .jpg, .webp.", flag_values=given)
    flags.DEFINE_list("labels", None, "Classes, a row each; all by default.", flag_values=given)
    flags.DEFINE_list("guidance", None, "Weights w of (1+w) ε(z,c) − w ε(z), a column each.", flag_values=given)
    flags.DEFINE_list("scale", None, "Scales s = 1 + w, in place of guidance.", flag_values=given)
    flags.DEFINE_integer("per_cell", None, "Samples of each label and weight.", flag_values=given, lower_bound=1)
    flags.DEFINE_integer("num_steps", None, "Network calls T.", flag_values=given, lower_bound=2)
    flags.DEFINE_string("sampler", None, "ancestral or ddim.", flag_values=given)
    flags.DEFINE_float("v", None, "Variance interpolation of ancestral, 0 … 1.", flag_values=given)
    flags.DEFINE_float("eta", None, "Noise of ddim, 0 … 1.", flag_values=given)
    flags.DEFINE_integer("seed", 0, "Seed of the noise.", flag_values=given)
    flags.DEFINE_integer("step", None, "Checkpoint; the newest by default.", flag_values=given)
    flags.DEFINE_float("ema", None, "Rate of the averaged parameters; 0 for none.", flag_values=given)
    no_arguments(parse_flags(given, argv))
    required(given, "workdir")
    check_picture(given.out)

    labels = None if given.labels is None else numbers("labels", given.labels, int)
    guidance, scale = (
        None if given[f].value is None else numbers(f, given[f].value, float) for f in ("guidance", "scale")
    )

    from cfgjax.evaluation.figures import sample_figure
    from cfgjax.model import guidance_weights

    weights = None
    if guidance is not None or scale is not None:
        weights = guidance_weights(guidance, scale, len(guidance or scale or []))
    model = cfgjax.load(given.workdir, step=given.step, ema=given.ema)
    pictures = model.config.sample
    picture = sample_figure(
        model,
        labels=range(model.num_classes) if labels is None else labels,
        guidance=pictures.guidance if weights is None else weights,
        per_cell=given.per_cell or pictures.per_cell,
        seed=given.seed,
        **{name: given[name].value for name in ("num_steps", "sampler", "v", "eta")},
    )
    picture.save(given.out)
    print(f"wrote {given.out} ({picture.width}×{picture.height}) from step {model.step} of {given.workdir}")
    return DONE


COMMANDS: dict[str, Callable[[list[str]], int]] = {"train": train, "sample": sample}


def main():
    """Runs the command line and exits: 0 done, 2 bad usage, 75 preempted and saved, 1 a failure told on one line."""
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # Orbax logs what it also raises
    threading.excepthook = lambda failed: logging.warning("a background thread failed: %s", failed.exc_value)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        sys.exit(run(sys.argv[1:]))
    except UsageError as e:
        print(f"cfgjax: error: {e}", file=sys.stderr)
        sys.exit(BAD_USAGE)
    except (OSError, ArithmeticError) as e:
        fail(e)


def fail(reason):
    """Ends the process with the reason as the last line on stderr.

    At a full disk the libraries' threads and exit handlers fail once more, later; what they say then is dropped.
    """
    sys.stdout.flush()
    stderr = os.dup(sys.stderr.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    os.write(stderr, f"cfgjax: failed: {reason}\n".encode())
    os._exit(FAILED)


def run(arguments):
    """The exit code of `cfgjax ARGUMENTS`."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return DONE if arguments else BAD_USAGE
    if arguments[0] == "--version":
        print(f"cfgjax {cfgjax.__version__}")
        return DONE
    command = choose("command", arguments[0], COMMANDS)
    return command([f"cfgjax {arguments[0]}", *arguments[1:]])


def usage():
    """The commands with their first lines."""
    lines = [f"  cfgjax {name} {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(["cfgjax: classifier-free guidance in JAX", "", *lines])


def no_arguments(rest):
    """Raises UsageError for words that are not flags."""
    if rest[1:]:
        raise UsageError(f"{rest[0]} takes flags only; {rest[1]!r} is none (a flag is --name=value)")


def required(given, *names):
    """Raises UsageError naming the flags that must be given and are not."""
    if missing := [f"--{name}" for name in names if given[name].value is None]:
        raise UsageError(f"{' and '.join(missing)} must be given")


def numbers(name, words, kind):
    """The words of a comma-separated flag as numbers."""
    try:
        if words:
            return [kind(word) for word in words]
    except ValueError:
        pass
    raise UsageError(f"--{name}={','.join(words)}: need {kind.__name__}s separated by commas")


def check_picture(path):
    """Raises UsageError where a picture cannot be written to path."""
    from PIL import Image

    written = [ending for ending, kind in Image.registered_extensions().items() if kind in Image.SAVE]
    if Path(path).suffix.lower() not in written:
        raise UsageError(f"--out={path}: the ending must be that of a picture, such as .png")
    if not os.access(Path(path).absolute().parent, os.W_OK):
        raise UsageError(f"--out={path}: the folder {Path(path).absolute().parent} cannot be written")
