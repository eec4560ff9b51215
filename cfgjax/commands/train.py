"""`cfgjax train`."""

from absl import flags

from cfgjax.commands.common import define_place, no_arguments, patience, place, required, shared_facts
from cfgjax.config import define_flag, parse_flags
from cfgjax.exits import DONE, PREEMPTED


def train(argv):
    """--config=FILE --workdir=DIR [--config.key=value …]: trains, or goes on with, the run in DIR."""
    given = define_flags(argv)
    no_arguments(parse_flags(given, argv))
    required(given, "config", "workdir")

    from cfgjax.cluster.session import taking_part
    from cfgjax.training.interrupt import StopRequest

    with StopRequest() as stop, taking_part(place(given), shared_facts(given, given.config), patience(given.config)):
        from cfgjax.training import loop

        return DONE if loop.train(given.config, given.workdir, stop) else PREEMPTED


def define_flags(argv):
    """The flags of the command."""
    given = flags.FlagValues()
    define_flag(given, argv)
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=given)
    define_place(given)
    return given
