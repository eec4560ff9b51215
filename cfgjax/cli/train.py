"""`cfgjax train`."""

from absl import flags

from cfgjax.base.exits import DONE, PREEMPTED
from cfgjax.base.paths import define_path
from cfgjax.cli.common import begin, define_place, no_arguments, patience, place, required, shared_facts
from cfgjax.distributed.cores import use_cores
from cfgjax.runs.config import define_flag, parse_flags


def train(argv):
    """--config=FILE --workdir=DIR [--config.key=value …]: trains the run in DIR, or resumes it."""
    given = define_flags(argv)
    no_arguments(parse_flags(given, argv))
    required(given, "config", "workdir")
    begin(given, f"training in {given.workdir}")

    from cfgjax.distributed.devices import open_devices
    from cfgjax.distributed.session import taking_part
    from cfgjax.training.interrupt import StopRequest

    own = place(given), shared_facts(given, given.config), patience(given.config)
    with StopRequest() as stop, taking_part(*own) as several:
        if not several:
            use_cores(parts(given.config))
        open_devices()

        from cfgjax.training import loop

        return DONE if loop.train(given.config, given.workdir, stop) else PREEMPTED


def parts(config):
    """Returns the number of parts into which a batch can be cut; 1 if the config chooses a mesh."""
    open_mesh = {"data": -1, "fsdp": 1, "slices": 1}
    batch_size, passes = (config.get("train", {}).get(name, 1) for name in ("batch_size", "accumulate_steps"))
    return batch_size // passes if open_mesh | dict(config.get("mesh", {})) == open_mesh else 1


def define_flags(argv):
    """The flags of the command."""
    given = flags.FlagValues()
    define_flag(given, argv)
    define_path("workdir", None, "Folder of the run.", flag_values=given)
    define_place(given)
    return given
