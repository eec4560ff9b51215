"""`cfgjax train`."""

from absl import flags

from cfgjax.commands.common import DONE, PREEMPTED, no_arguments, required
from cfgjax.config import define_flag, parse_flags


def train(argv):
    """--config=FILE --workdir=DIR [--config.key=value …]: trains, or goes on with, the run in DIR."""
    given = define_flags(argv)
    no_arguments(parse_flags(given, argv))
    required(given, "config", "workdir")

    from cfgjax.training import loop

    return DONE if loop.train(given.config, given.workdir) else PREEMPTED


def define_flags(argv):
    """The flags of the command."""
    given = flags.FlagValues()
    define_flag(given, argv)
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=given)
    return given
