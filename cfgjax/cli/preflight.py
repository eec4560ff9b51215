"""`cfgjax preflight`."""

import json
import os
import sys

from absl import flags

from cfgjax.base.errors import UsageError
from cfgjax.base.exits import DONE
from cfgjax.base.paths import define_path
from cfgjax.base.progress import log, show_progress
from cfgjax.cli.common import check_writable, no_arguments, required
from cfgjax.distributed.devices import import_jax
from cfgjax.runs.config import call, check_sections, config_path, define_flag, parse_flags

MAX_DEVICES = 2**16


def preflight(argv):
    """--config=FILE --devices=N [--mesh=data=8,fsdp=8 --hbm=16GiB --run …]: memory and FLOPs of a training step.

    It is compiled for N virtual devices; no data is read. --run also takes one real step here, and saves it.
    """
    given = flags.FlagValues()
    define_flag(given, argv)
    what = "Number of devices."
    flags.DEFINE_integer("devices", None, what, flag_values=given, lower_bound=1, upper_bound=MAX_DEVICES)
    flags.DEFINE_list("mesh", [], "Sizes in place of config.mesh: data=8,fsdp=8.", flag_values=given)
    flags.DEFINE_string("hbm", None, "Memory of a device: 16GiB, 80GB.", flag_values=given)
    define_path("json", None, "File for the figures; - is stdout, in place of the report.", flag_values=given)
    flags.DEFINE_bool("run", False, "A real step, save and restore on the devices at hand.", flag_values=given)
    define_path("scratch", None, "Where --run saves; by default the temporary folder.", flag_values=given)
    no_arguments(parse_flags(given, argv))
    required(given, "config", "devices")
    check_files(given)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "1"  # so that the partitioner prints its complaints, which are counted
    import_jax()

    from cfgjax.distributed.sharding import parse_mesh
    from cfgjax.jobs.preflight.sizes import parse_bytes
    from cfgjax.runs.kinds import sections

    config = given.config
    check_sections(config, sections(config))
    config.mesh.update(parse_mesh(given.mesh))
    hbm = None if given.hbm is None else parse_bytes(given.hbm)
    use_virtual_devices(given.devices)
    check_mesh(config)
    if given.json == "-":
        show_progress(sys.stderr)
    log.info("preflight of %s on %d devices …", config_path(argv), given.devices)

    from cfgjax.jobs.preflight.figures import figures
    from cfgjax.jobs.preflight.report import report
    from cfgjax.jobs.preflight.trial import in_a_process, trial_config, trial_report

    file = sys.stderr if given.json == "-" else sys.stdout
    found = {"config": config_path(argv)} | figures(config, hbm=hbm)
    print(*report(found), sep="\n", file=file, flush=True)
    if given.run:
        found["trial"] = in_a_process(trial_config(config, found["batch"]), given.scratch)
        print("", *trial_report(found["trial"]), sep="\n", file=file)
    text = json.dumps(found, indent=2)
    if given.json == "-":
        print(text)
    elif given.json is not None:
        with open(given.json, "w") as out:
            out.write(text + "\n")
    return DONE


def check_files(given):
    """Raises UsageError if a file or folder cannot be written, before anything is compiled."""
    if given.json not in (None, "-"):
        check_writable("json", given.json)
    if given.scratch is None:
        return
    if not given.run:
        raise UsageError("--scratch is given without --run; only --run saves")
    if not os.path.isdir(given.scratch) or not os.access(given.scratch, os.W_OK):
        raise UsageError(f"--scratch={given.scratch}: need a folder that can be written")


def check_mesh(config):
    """Raises UsageError unless the mesh fits the devices and divides the batch, before the slow imports."""
    from cfgjax.distributed.sharding import check_batch_size, make_mesh

    mesh = call(make_mesh, "mesh", config.mesh)
    size, parts = (config.get("train", {}).get(name, 1) for name in ("batch_size", "accumulate_steps"))
    check_batch_size(size, mesh, parts)


def use_virtual_devices(count):
    """Gives jax, not used before, `count` virtual CPU devices, and reduces its optimisations to compile faster."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)
    jax.config.update("jax_disable_most_optimizations", True)  # of machine code: collectives and memory stay the same
