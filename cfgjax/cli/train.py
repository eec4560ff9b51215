"""`cfgjax train`."""

from absl import flags

from cfgjax.base.errors import HelpAsked
from cfgjax.base.exits import DONE, PREEMPTED
from cfgjax.base.paths import define_path
from cfgjax.cli.common import (
    begin_command,
    config_printed,
    define_allow_changes,
    define_place,
    no_arguments,
    place_flags,
    required,
    shared_facts,
)
from cfgjax.cli.own_data import define_own_data, with_own_data
from cfgjax.distributed.cpu_devices import use_cores
from cfgjax.runs.changes import check_allowed
from cfgjax.runs.config import HELP, define_flag, flag_help, parse_flags
from cfgjax.runs.config_reference import config_help
from cfgjax.runs.settings import Settings


def train(argv: list[str]) -> int:
    """--config=NAME|--data=IMAGES --workdir=DIR [--config.key=value …]: trains a run in DIR, or resumes it.

    Repeating the command resumes a stopped run; values that change it need --allow_changes=KEY. --config=NAME
    --print_config only prints the config.
    """
    if HELP & set(argv):
        given = define_flags(argv[:1])
        raise HelpAsked(f"{flag_help(given)}\n\n{config_help()}", given)
    argv = with_own_data(argv)
    given = define_flags(argv)
    no_arguments(parse_flags(given, argv))
    if config_printed(given):
        return DONE
    required(given, "config", "workdir")
    check_allowed(given.allow_changes, given.config)
    begin_command(given, f"training in {given.workdir}")

    from cfgjax.distributed.devices import open_devices
    from cfgjax.distributed.session import taking_part
    from cfgjax.training.interrupt import StopRequest

    settings = Settings.from_config(given.config)
    own = place_flags(given), shared_facts(given, settings), settings.cluster
    with StopRequest() as stop, taking_part(*own):
        use_cores()
        open_devices()

        from cfgjax.training import loop

        outcome = loop.train_until_stopped(settings, given.workdir, stop, allow_changes=given.allow_changes)
        return DONE if outcome.done else PREEMPTED


def define_flags(argv: list[str]) -> flags.FlagValues:
    """Returns the flags of the command."""
    given = flags.FlagValues()
    define_flag(given, argv)
    define_path("workdir", None, "Folder of the run: a new one, or one to resume.", flag_values=given)
    define_own_data(given)
    define_allow_changes(given, "Keys of the config, separated by commas, in which a run may resume with other values.")
    define_place(given)
    return given
