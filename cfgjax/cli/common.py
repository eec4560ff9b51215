"""What the commands share: exit codes, and checks of flags."""

import os
from pathlib import Path

from absl import flags

from cfgjax.base.errors import UsageError, printable
from cfgjax.base.numerals import check_ascii, is_whole_number, real_number, whole_number
from cfgjax.base.paths import define_path
from cfgjax.base.progress import log, show_progress
from cfgjax.runs.config import call, flatten

MAX_NAMED = 20  # classes on one line
PLAN_FLAGS = ("num_samples", "batch_size", "label_policy", "features", "classifier", "reference")
PLACE = ("coordinator", "num_processes", "process_id")


def define_place(given):
    """Adds the flags that give a process its number and the number of all; by default the environment has them."""
    what = "HOST:PORT of process 0, for several processes."
    flags.DEFINE_string("coordinator", None, what, flag_values=given)
    flags.DEFINE_integer("num_processes", None, "Number of processes.", flag_values=given, lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0 on.", flag_values=given, lower_bound=0)


def place(given):
    """The values of those flags."""
    return {name: given[name].value for name in PLACE}


def shared_facts(given, config):
    """{name: text} that the processes of a command must have in common: its config and its other flags."""
    shared = {
        f"--{name}": str(given[name].value) for name in given if name not in (*PLACE, "config") and given[name].present
    }
    return shared | {key: repr(value) for key, value in flatten(config).items()}


def begin(given, what):
    """Reports what the command does, in the first process only, then imports jax, which takes seconds."""
    from cfgjax.distributed.devices import import_jax
    from cfgjax.distributed.environment import find_place

    found = find_place(place(given)) if PLACE[0] in given else None
    if found is not None and found.process_id != 0:
        show_progress(None)
    log.info("%s: starting jax …", what)
    import_jax()


def patience(config):
    """The `Patience` of a config, the usual one where it says nothing."""
    from cfgjax.distributed.session import Patience

    return call(Patience, "cluster", config.get("cluster", {}))


def define_sampling(given):
    """The flags of `Model.sample` that have one value."""
    define_path("workdir", None, "Folder of the run.", flag_values=given)
    flags.DEFINE_list("guidance", None, "Weights w of (1+w) ε(z,c) − w ε(z).", flag_values=given)
    flags.DEFINE_list("scale", None, "Scales s = 1 + w, in place of guidance.", flag_values=given)
    flags.DEFINE_string("sampler", None, "ancestral or ddim.", flag_values=given)
    flags.DEFINE_float("eta", None, "Noise of ddim, 0 … 1.", flag_values=given)
    define_path("guide", None, "Workdir of a noise-aware classifier that guides.", flag_values=given)
    flags.DEFINE_list("classifier_scale", None, "Scales of its gradient, with --guide.", flag_values=given)
    flags.DEFINE_string("classifier_form", "eps", "How it guides: eps, z or mean.", flag_values=given)
    flags.DEFINE_integer("step", None, "Checkpoint; the newest by default.", flag_values=given)
    what = "Axes of the devices, such as data=-1,fsdp=8, over whose fsdp axis the parameters are split."
    flags.DEFINE_list("mesh", None, what, flag_values=given)
    define_place(given)


def mesh_of(given):
    """The mesh of --mesh over all devices, None without."""
    if given.mesh is None:
        return None

    from cfgjax.distributed.sharding import make_mesh, parse_mesh

    return make_mesh(**parse_mesh(given.mesh))


def weights(given):
    """The weights w of --guidance or --scale as floats, or None."""
    if given.guidance is not None and given.scale is not None:
        raise UsageError("--guidance (w) and --scale (s = 1 + w) are both given; give one")
    if given.scale is not None:
        return [float(f"{s - 1:.7g}") for s in numbers("scale", given.scale, float)]
    return None if given.guidance is None else numbers("guidance", given.guidance, float)


def plan_of(given, config):
    """The `Plan` of config.evaluate with the flags over it."""
    from cfgjax.evaluation.frontier.plan import Plan

    section = dict(config.get("evaluate", {}))
    section |= {name: given[name].value for name in PLAN_FLAGS if given[name].value is not None}
    guidance = weights(given)
    return call(Plan, "evaluate", section | ({} if guidance is None else {"guidance": tuple(guidance)}))


def timesteps(word):
    """Returns a number of steps as an int, or the name of a selection of timesteps unchanged.

    Raises ValueError for an empty word and for characters that are not ASCII.
    """
    check_ascii(word)
    if not word.strip():
        raise ValueError("it is empty")
    return whole_number(word) if is_whole_number(word) else word


def timesteps_of(given, name):
    """Returns `timesteps` of a flag, or None without it. Raises UsageError."""
    try:
        return None if given[name].value is None else timesteps(given[name].value)
    except ValueError as e:
        raise UsageError(f"--{name}={given[name].value}: {e}; need a number of steps, ddim25 or 10+15+20") from None


def classifier_scales(given):
    """The scales of --classifier_scale as floats, or None without --guide; they go together."""
    if (given.guide is None) != (given.classifier_scale is None):
        one, other = (
            ("--guide", "--classifier_scale") if given.classifier_scale is None else ("--classifier_scale", "--guide")
        )
        raise UsageError(f"{one} is given without {other}: classifier guidance needs a classifier and a scale")
    if given.guide is None and given["classifier_form"].present:
        raise UsageError("--classifier_form is given without --guide")
    return None if given.guide is None else numbers("classifier_scale", given.classifier_scale, float)


def no_arguments(rest):
    """Raises UsageError for words that are not flags."""
    if rest[1:]:
        raise UsageError(f"{rest[0]} takes flags only; {rest[1]!r} is none (a flag is --name=value)")


def required(given, *names):
    """Raises UsageError naming the flags that must be given and are not."""
    if missing := [f"--{name}" for name in names if given[name].value is None]:
        raise UsageError(f"{' and '.join(missing)} must be given")


def numbers(name, words, kind):
    """Returns the words of a comma-separated flag, each converted by kind: int, float or a function."""
    given, convert = f"--{name}={','.join(words)}", {int: whole_number, float: real_number}.get(kind, kind)
    noun = {int: "integers", float: "numbers"}.get(kind, "values")
    need = f"need {noun} separated by commas"
    if not words:
        raise UsageError(f"{given}: {need}")
    try:
        return [convert(word) for word in words]
    except ValueError as e:
        raise UsageError(f"{given}: {need}; {e}") from None


def single(name, words, kind):
    """Returns the number of a flag that is a list in other modes, or None without it."""
    if words is None:
        return None
    values = numbers(name, words, kind)
    if len(values) > 1:
        raise UsageError(f"--{name}={','.join(words)}: bits/dim takes one value")
    return values[0]


def check_writable(flag, path):
    """Raises UsageError if no file can be written to path, the value of a flag."""
    folder = Path(path).absolute().parent
    if not os.access(folder, os.W_OK) or Path(path).is_dir():
        raise UsageError(f"--{flag}={path}: it cannot be written in {folder}")


def class_list(labels, classes):
    """Returns labels with their class names, "0 ant, 1 bee", or without if classes is None. A long list is cut."""
    parts = [f"{label}" if classes is None else f"{label} {printable(classes[label])}" for label in labels]
    return ", ".join(parts if len(parts) <= MAX_NAMED else [*parts[: MAX_NAMED - 2], "…", parts[-1]])
