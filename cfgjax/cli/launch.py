"""`cfgjax launch`."""

import os
from collections.abc import Sequence

from absl import flags

from cfgjax.base.errors import HelpAsked, UsageError, choose, printable
from cfgjax.base.paths import check_trainable
from cfgjax.cli import evaluate, sample, train
from cfgjax.cli.common import no_arguments, required
from cfgjax.jobs.launch import LAUNCHERS
from cfgjax.jobs.launch.job import Job
from cfgjax.jobs.launch.quoting import check_line, check_word
from cfgjax.runs.changes import check_allowed
from cfgjax.runs.config import HELP, parse_flags
from cfgjax.runs.settings import Settings

COMMAND_FLAGS = {"train": train.define_flags, "evaluate": evaluate.define_flags, "sample": sample.define_flags}
EXAMPLE = "train --config=FILE --workdir=DIR"


def launch(argv: list[str]) -> int:
    """local|slurm|tpu_vm|kubernetes [--dry_run …] -- train --config=… …: starts a command here or on a cluster.

    The command after -- is train, evaluate or sample, with its own flags. `cfgjax launch LAUNCHER --help` lists those
    of a launcher.
    """
    if HELP & set(argv[1:2]):
        raise HelpAsked(
            "\n".join(f"  {name}: {(known.__doc__ or '').splitlines()[0]}" for name, known in LAUNCHERS.items())
        )
    if len(argv) < 2 or argv[1].startswith("-"):
        raise UsageError(f"{argv[0]}: the first word must be one of {', '.join(LAUNCHERS)}")
    launcher = choose("launcher", argv[1], LAUNCHERS)
    name, own = " ".join(argv[:2]), argv[2:]
    own, command = (own[: own.index("--")], own[own.index("--") + 1 :]) if "--" in own else (own, [])
    if not command and not HELP & set(own):
        raise UsageError(f"give the command to launch after --, for example: {name} -- {EXAMPLE}")
    given = flags.FlagValues()
    flags.DEFINE_bool("dry_run", False, "Only print what would be started or submitted.", flag_values=given)
    launcher.define_flags(given)
    no_arguments(parse_flags(given, [name, *own]))
    check_lines(given)
    return launcher.launch(given, Job(tuple(command), check_command(command).workdir))


def check_lines(given: flags.FlagValues) -> None:
    """Raises UsageError if a text flag of a launcher has more than one line."""
    for name in given:
        value = given[name].value
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                check_line(name, text)


def check_command(words: Sequence[str]) -> flags.FlagValues:
    """Returns the flags of a cfgjax command, checked without opening its data."""
    for word in words:
        check_word(word)
    given = choose("command to launch", words[0], COMMAND_FLAGS)([*words])
    no_arguments(parse_flags(given, [f"cfgjax {words[0]}", *words[1:]]))
    required(given, *(("config", "workdir") if words[0] == "train" else ("workdir",)))
    if words[0] == "train":
        check_allowed(given.allow_changes, Settings.from_config(given.config))
        check_trainable(given.workdir)
    if os.path.isfile(given.workdir):  # False for names that are too long; Path raises for them
        raise UsageError(f"--workdir={printable(given.workdir)} is a file")
    return given
