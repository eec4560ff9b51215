"""Flags and checks that several commands share."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from absl import flags

from cfgjax.base.errors import UsageError, printable
from cfgjax.base.numerals import real_number, whole_number
from cfgjax.base.paths import define_path
from cfgjax.base.progress import log, show_progress
from cfgjax.base.storage import AnyPath, absolute, check_bucket, is_url, place
from cfgjax.runs import sample_options
from cfgjax.runs.config import flatten, to_json
from cfgjax.runs.sampling_settings import EvaluateSettings
from cfgjax.runs.settings import Settings

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from cfgjax.models.model import Model

T = TypeVar("T", int, float)

MAX_NAMED = 20  # classes on one line
PLAN_FLAGS = ("num_samples", "batch_size", "features", "classifier", "reference")
PLACE = ("coordinator", "num_processes", "process_id")


def define_place(given: flags.FlagValues) -> None:
    """Adds the flags for the rank and the number of processes. By default these come from the environment."""
    what = "HOST:PORT of process 0, if there are several processes; by default from Slurm, Open MPI or a TPU pod."
    flags.DEFINE_string("coordinator", None, what, flag_values=given)
    flags.DEFINE_integer(
        "num_processes",
        None,
        "Number of processes; must be given with --coordinator.",
        flag_values=given,
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "process_id",
        None,
        "Number of this process, from 0; must be given with --coordinator.",
        flag_values=given,
        lower_bound=0,
    )


def define_allow_changes(given: flags.FlagValues, what: str) -> None:
    """Adds the flag of the keys that may change when a run resumes. what: its help."""
    flags.DEFINE_multi_string("allow_changes", [], what, flag_values=given)


def place_flags(given: flags.FlagValues) -> dict[str, Any]:
    """Returns {name: value} of the flags of `define_place`."""
    return {name: given[name].value for name in PLACE}


def shared_facts(given: flags.FlagValues, settings: Settings) -> dict[str, str]:
    """Returns {name: text} that must be equal in all processes of a command: its config and its other flags."""
    shared = {
        f"--{name}": str(given[name].value) for name in given if name not in (*PLACE, "config") and given[name].present
    }
    return shared | {key: repr(value) for key, value in flatten(settings.given).items()}


def config_printed(given: flags.FlagValues) -> bool:
    """Prints --config in the format of config.json if --print_config is given. Returns whether it is given."""
    if given.print_config:
        required(given, "config")
        print(to_json(given.config), end="")
    return given.print_config


def begin_command(given: flags.FlagValues, what: str) -> None:
    """Logs what the command does (in the first process only), then imports jax, which takes seconds."""
    from cfgjax.distributed.devices import import_jax
    from cfgjax.distributed.environment import find_place

    found = find_place(place_flags(given)) if PLACE[0] in given else None
    if found is not None and found.process_id != 0:
        show_progress(None)
    log.info("%s: starting jax …", what)
    import_jax()


def define_sampling(given: flags.FlagValues, command: str) -> None:
    """Adds the flags common to sample and evaluate, with one for each option of sampling of this command."""
    define_path("workdir", None, "Folder of the run.", flag_values=given)
    for name, option in sample_options.fields(command).items():
        default = f"config.{command}.{name}" if f"config.{command}" in option.places else option.otherwise
        what = f"{option.help} One or several, separated by commas; by default {default}."
        flags.DEFINE_string(name, None, what, flag_values=given)
    what = "Guidance as s = 1 + w, instead of --guidance. One or several, separated by commas."
    flags.DEFINE_list("scale", None, what, flag_values=given)
    define_path("guide", None, "Workdir of a noise-aware classifier, for classifier guidance.", flag_values=given)
    what = "Weak model for the rule autoguidance: WORKDIR[@STEP][,ema=RATE]."
    define_path("weak", None, what, flag_values=given)
    define_step(given)
    what = "Device mesh, such as data=-1,fsdp=8: parameters are split over fsdp; -1 means all other devices."
    flags.DEFINE_list("mesh", None, what, flag_values=given)
    define_place(given)


def define_step(given: flags.FlagValues) -> None:
    """Adds the flag of the checkpoint."""
    flags.DEFINE_integer("step", None, "Step of the checkpoint; by default the newest.", flag_values=given)


def define_checkpoint(given: flags.FlagValues) -> None:
    """Adds the flags of one checkpoint and of one average of its weights."""
    define_step(given)
    what = "EMA rate or width of the weights; 0 for no averaging; by default the run's first rate or width."
    flags.DEFINE_float("ema", None, what, flag_values=given)


def sampling_axes(given: flags.FlagValues, command: str) -> dict[str, tuple[Any, ...]]:
    """Returns {option: values} of the given flags of `define_sampling`. Raises UsageError."""
    if given.guidance is not None and given.scale is not None:
        raise UsageError("--guidance (w) and --scale (s = 1 + w) are both given; give one")
    if given.guide is None and given.classifier_scale is not None:
        raise UsageError("--classifier_scale is given without --guide, the classifier that it scales")
    texts: dict[str, Any] = {name: given[name].value for name in sample_options.fields(command)}
    axes = {name: sample_options.read_values(name, text) for name, text in texts.items() if text is not None}
    if given.scale is not None:
        axes["guidance"] = tuple(float(f"{s - 1:.7g}") for s in numbers("scale", given.scale, float))
    return axes


def check_specs(axes: Mapping[str, Iterable[Any]]) -> None:
    """Raises UsageError if the text of a rule, a sampler or a grid cannot be read. Imports jax."""
    from cfgjax.models.binding import grid_value, rule_value, sampler_value

    for name, read in {"rule": rule_value, "sampler": sampler_value, "grid": grid_value}.items():
        for value in axes.get(name, ()):
            read(value)


def check_diagnostics(given: Any, model: "Model", rules: Sequence[Any]) -> None:
    """Raises UsageError if --diagnostics is given and none of the rules has two predictions on this model."""
    if not given.diagnostics:
        return

    from cfgjax.models.usable_rules import has_two_predictions, usable_rules

    if not any(has_two_predictions(rule, model) for rule in rules):
        what = f"{rules[0]!r} has only one on this network; use one of the rules"
        can = usable_rules(model, two_predictions=True)
        raise UsageError(f"--diagnostics compares the two predictions that guidance combines; {what} {can}")


def mesh_of(given: flags.FlagValues) -> "Mesh | None":
    """Returns the mesh of --mesh over all devices, or None without the flag."""
    if given.mesh is None:
        return None

    from cfgjax.distributed.sharding import make_mesh, parse_mesh

    return make_mesh(**parse_mesh(given.mesh))


def plan_of(given: flags.FlagValues, settings: Settings) -> EvaluateSettings:
    """Returns config.evaluate, overridden by the flags."""
    flagged: dict[str, Any] = {name: given[name].value for name in PLAN_FLAGS if given[name].value is not None}
    return dataclasses.replace(settings.evaluate, **flagged)


def no_arguments(rest: Sequence[str]) -> None:
    """Raises UsageError if there are words that are not flags."""
    if rest[1:]:
        raise UsageError(f"{rest[0]} takes only flags, --name=value; given {rest[1]!r}")


def required(given: flags.FlagValues, *names: str) -> None:
    """Raises UsageError with the required flags that are missing."""
    if missing := [f"--{name}" for name in names if given[name].value is None]:
        raise UsageError(f"{' and '.join(missing)} must be given")


def numbers(name: str, words: Sequence[str], kind: type[T]) -> list[T]:
    """Returns the numbers of a comma-separated flag. kind: int or float."""
    given = f"--{name}={','.join(words)}"
    need = f"need {'integers' if kind is int else 'numbers'} separated by commas"
    convert: Callable[[str], Any] = whole_number if kind is int else real_number
    if not words:
        raise UsageError(f"{given}: {need}")
    try:
        return [convert(word) for word in words]
    except ValueError as e:
        raise UsageError(f"{given}: {need}; {e}") from None


def single(axes: Mapping[str, Sequence[Any]], name: str, why: str) -> Any:
    """Returns the only value of an option in axes, or None if it is not there. why: the message for several."""
    values = axes.get(name, (None,))
    if len(values) > 1:
        raise UsageError(f"--{name} has {len(values)} values; {why}")
    return values[0]


def check_writable(flag: str, path: AnyPath) -> None:
    """Raises UsageError if path, the value of a flag, is not writable as a file."""
    if place(path).is_dir():
        raise UsageError(f"--{flag}={path} is a folder; give a file")
    folder = absolute(path).parent
    if is_url(path):
        check_bucket(folder, f"--{flag}={path}")
        return
    if not os.access(folder, os.W_OK):
        raise UsageError(f"--{flag}={path}: it cannot be written in {folder}")


def class_list(labels: Iterable[int], classes: Sequence[str] | None) -> str:
    """Returns text of labels and class names, "0 ant, 1 bee", or only labels if classes is None. Cuts a long list."""
    parts = [f"{label}" if classes is None else f"{label} {printable(classes[label])}" for label in labels]
    return ", ".join(parts if len(parts) <= MAX_NAMED else [*parts[: MAX_NAMED - 2], "…", parts[-1]])
