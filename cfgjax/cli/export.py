"""`cfgjax export`: a trained model as a folder, or its sampler as one file."""

import importlib.util
from typing import Any

from absl import flags

from cfgjax.base.errors import UsageError
from cfgjax.base.exits import DONE
from cfgjax.base.files import check_folder, writing
from cfgjax.base.folders import is_unused, writing_folder
from cfgjax.base.paths import define_path
from cfgjax.base.progress import log
from cfgjax.base.storage import is_url, place, size_of
from cfgjax.cli.common import begin_command, check_writable, define_checkpoint, no_arguments, required
from cfgjax.cli.stages import define_stage_folders
from cfgjax.runs import sample_options
from cfgjax.runs.config import parse_flags

PROGRAM_OPTIONS = ("rule", "sampler", "num_steps", "grid", "clip")
CARD_FLAGS = ("name", "license")


def export(argv: list[str]) -> int:
    """--workdir=DIR --out=DIR [--license=NAME]: writes a model and its model card to a folder, to share it.

    `cfgjax.load` reads the folder like a workdir. With --format=stablehlo --out=FILE.npz it writes the compiled
    sampler, which runs with jax alone. With --base=DIR --upsampler=DIR it writes both models of a cascade.
    """
    given = define_flags(argv)
    no_arguments(parse_flags(given, argv))
    as_program = given.format == "stablehlo"
    check_flags(given, as_program)
    begin_command(given, f"exporting {given.workdir or given.base}")

    from cfgjax.distributed.devices import open_devices

    open_devices()
    return write_program(given) if as_program else write_folder(given)


def check_flags(given: flags.FlagValues, as_program: bool) -> None:
    """Raises UsageError unless the flags fit each other and --out can be written."""
    required(given, "out")
    if (given.base is None) != (given.upsampler is None) or (given.workdir is None) == (given.base is None):
        raise UsageError("give either --workdir (one model) or --base and --upsampler (a cascade)")
    unused = CARD_FLAGS if as_program else (*PROGRAM_OPTIONS, "platforms")
    if present := [name for name in unused if given[name].present]:
        raise UsageError(f"--{present[0]} has no effect with --format={given.format}")
    if as_program:
        if given.base is not None:
            raise UsageError("--format=stablehlo is for one model, --workdir; export a cascade as folders")
        if place(given.out).suffix != ".npz":
            raise UsageError(f"--out={given.out}: the ending must be .npz")
        return check_writable("out", given.out)
    if importlib.util.find_spec("safetensors") is None:
        raise UsageError("cfgjax export needs safetensors: pip install 'cfgjax[export]'")
    check_folder(given.out, f"--out={given.out}")
    if not is_unused(given.out):
        raise UsageError(f"--out={given.out}: the folder is not empty; give a new one")


def write_folder(given: flags.FlagValues) -> int:
    """Writes the folder of a model, or those of a cascade. Returns the exit code."""
    from cfgjax.convert.export_folder import export_model
    from cfgjax.models.loading import check_draws

    stages = {"": given.workdir} if given.base is None else {"base": given.base, "upsampler": given.upsampler}
    for workdir in stages.values():
        check_draws(workdir)
    name = given.name or (place(given.out) if is_url(given.out) else place(given.out).resolve()).name
    with writing_folder(given.out, [f"{stage}/export.json".lstrip("/") for stage in stages]) as folder:
        for stage, workdir in stages.items():
            (folder / stage).mkdir(exist_ok=True)
            own = {} if stage == "upsampler" else {"step": given.step, "ema": given.ema}
            title = f"{name}/{stage}" if stage else name
            found = export_model(workdir, folder / stage, name=title, license=given.license, **own)
            log.info("%s: step %d, ema %g, %s parameters", title, *found)
    print(f"wrote {given.out}; cfgjax.load reads it like a workdir, and README.md is its model card")
    return DONE


def write_program(given: flags.FlagValues) -> int:
    """Writes the compiled sampler. Returns the exit code."""
    import jax
    import numpy as np

    from cfgjax.convert.export_program import export_program
    from cfgjax.distributed.sharding import make_mesh
    from cfgjax.models.loading import load

    model = load(given.workdir, given.step, given.ema, make_mesh(devices=jax.devices()[:1]))
    values: dict[str, Any] = {name: given[name].value for name in PROGRAM_OPTIONS if given[name].value is not None}
    options = {}
    for name, text in values.items():
        read = sample_options.read_values(name, text)
        if len(read) > 1:
            raise UsageError(f"--{name} has {len(read)} values; a program has one")
        options[name] = read[0]
    log.info("tracing the sampler for %s …", ", ".join(given.platforms))
    arrays: dict[str, Any] = export_program(model, tuple(given.platforms), **options)
    with writing(given.out) as new, open(new, "wb") as file:
        np.savez(file, **arrays)
    size = size_of(given.out) / 1e6
    print(f"wrote {given.out} ({size:.3g} MB) for {', '.join(given.platforms)}")
    return DONE


def define_flags(argv: list[str]) -> flags.FlagValues:
    """Returns the flags of the command."""
    given = flags.FlagValues()
    define_path("workdir", None, "Folder of the run.", flag_values=given)
    define_stage_folders(given)
    define_path(
        "out",
        None,
        "Folder to write, new or empty; with --format=stablehlo, the .npz file to write.",
        flag_values=given,
    )
    what = "What to write: folder (the weights and a card) or stablehlo (the compiled sampler as one file)."
    flags.DEFINE_enum("format", "folder", ["folder", "stablehlo"], what, flag_values=given)
    define_checkpoint(given)
    flags.DEFINE_string(
        "name", None, "Name of the model in its card; by default the name of the folder --out.", flag_values=given
    )
    flags.DEFINE_string("license", None, "Licence in the card, such as cc-by-4.0; by default none.", flag_values=given)
    what = "With --format=stablehlo: platforms that can run the sampler, separated by commas."
    flags.DEFINE_list("platforms", ["cpu", "cuda", "tpu"], what, flag_values=given)
    known = sample_options.fields("sample")
    for name in PROGRAM_OPTIONS:
        what = f"With --format=stablehlo: {known[name].help} By default config.sample.{name} of the run."
        flags.DEFINE_string(name, None, what, flag_values=given)
    return given
