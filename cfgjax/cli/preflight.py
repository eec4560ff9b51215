"""`cfgjax preflight`."""

import dataclasses
import json
import os
import sys

from absl import flags

from cfgjax.base.errors import UsageError
from cfgjax.base.exits import DONE
from cfgjax.base.paths import define_path
from cfgjax.base.progress import log, show_progress
from cfgjax.cli.common import check_writable, config_printed, no_arguments, required
from cfgjax.distributed.devices import import_jax
from cfgjax.runs.config import config_path, define_flag, parse_flags
from cfgjax.runs.settings import Settings

MAX_DEVICES = 2**16


def preflight(argv: list[str]) -> int:
    """--config=FILE --devices=N [--mesh=data=8,fsdp=8 --hbm=16GiB --run …]: reports a training step's memory and FLOPs.

    Compiles the step for N virtual devices and reads no data. With --run, also runs one real step here and saves it.
    """
    given = flags.FlagValues()
    define_flag(given, argv)
    what = "Number of devices of the planned run."
    flags.DEFINE_integer("devices", None, what, flag_values=given, lower_bound=1, upper_bound=MAX_DEVICES)
    flags.DEFINE_list("mesh", [], "Device mesh, such as data=8,fsdp=8; by default config.mesh.", flag_values=given)
    flags.DEFINE_string(
        "hbm",
        None,
        "Memory of one device, such as 16GiB or 80GB, to report the largest batch that fits.",
        flag_values=given,
    )
    define_path(
        "json",
        None,
        "File for the figures as JSON; - prints them to stdout and the report to stderr.",
        flag_values=given,
        local=True,
    )
    flags.DEFINE_bool(
        "run",
        False,
        "Also run one real step on the devices of this machine, and save and restore it.",
        flag_values=given,
    )
    what = "Folder in which --run saves; by default the system's temporary folder."
    define_path("scratch", None, what, flag_values=given, local=True)
    no_arguments(parse_flags(given, argv))
    if config_printed(given):
        return DONE
    required(given, "config", "devices")
    check_outputs(given)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "1"  # makes the partitioner print its complaints, which are counted
    import_jax()

    from cfgjax.distributed.sharding import parse_mesh
    from cfgjax.jobs.preflight.sizes import parse_bytes

    mesh = {f"mesh.{axis}": size for axis, size in parse_mesh(given.mesh).items()}
    settings = Settings.from_config(given.config).replace(**mesh)
    hbm = None if given.hbm is None else parse_bytes(given.hbm)
    use_virtual_devices(given.devices)
    check_mesh(settings)
    if given.json == "-":
        show_progress(sys.stderr)
    log.info("preflight of %s on %d devices …", config_path(argv), given.devices)

    from cfgjax.jobs.preflight.report import report
    from cfgjax.jobs.preflight.step_figures import step_figures
    from cfgjax.jobs.preflight.trial import in_a_process, trial_report, trial_settings

    file = sys.stderr if given.json == "-" else sys.stdout
    found = {"config": config_path(argv)} | step_figures(settings, hbm=hbm)
    print(*report(found), sep="\n", file=file, flush=True)
    if given.run:
        found["trial"] = in_a_process(trial_settings(settings, found["batch"]), given.scratch)
        print("", *trial_report(found["trial"]), sep="\n", file=file)
    text = json.dumps(found, indent=2)
    if given.json == "-":
        print(text)
    elif given.json is not None:
        with open(given.json, "w") as out:
            out.write(text + "\n")
    return DONE


def check_outputs(given: flags.FlagValues) -> None:
    """Raises UsageError if --json or --scratch is not writable. Runs before anything is compiled."""
    if given.json not in (None, "-"):
        check_writable("json", given.json)
    if given.scratch is None:
        return
    if not given.run:
        raise UsageError("--scratch has no effect without --run")
    if not os.path.isdir(given.scratch) or not os.access(given.scratch, os.W_OK):
        raise UsageError(f"--scratch={given.scratch}: need a writable folder")


def check_mesh(settings: Settings) -> None:
    """Raises UsageError unless the mesh fits the devices and divides the batch. Runs before the slow imports."""
    from cfgjax.distributed.sharding import check_batch_size, make_mesh

    mesh = make_mesh(**dataclasses.asdict(settings.mesh))
    check_batch_size(settings.train.batch_size, mesh, settings.train.accumulate_steps)


def use_virtual_devices(count: int) -> None:
    """Gives jax `count` virtual CPU devices and less optimisation, to compile faster. Must run before jax is used."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)
    jax.config.update("jax_disable_most_optimizations", True)  # affects machine code, but not collectives and memory
