"""`cfgjax convert`: converts published weights to a workdir, and a run's weights to guided-diffusion's format."""

import importlib.util
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from cfgjax.base.errors import HelpAsked, UsageError, choose
from cfgjax.base.exits import DONE
from cfgjax.base.files import check_folder
from cfgjax.base.folders import is_unused, writing_folder, writing_url
from cfgjax.base.paths import check_trainable, define_path
from cfgjax.base.progress import log
from cfgjax.base.staging import staged
from cfgjax.base.storage import AnyPath, absolute, is_url, place
from cfgjax.cli.common import begin_command, check_writable, define_step, no_arguments, required
from cfgjax.distributed.devices import import_jax, open_devices
from cfgjax.runs.config import HELP, parse_flags

if TYPE_CHECKING:
    from cfgjax.convert.layout import Convertible

LARGE_BYTES = 20_000_000  # of weights; smaller files are read within a second
CONVERTED = ("checkpoints/", "config.json")  # what a conversion writes


def convert(argv: list[str]) -> int:
    """openai-adm|diffusers|to-openai-adm --flag=value …: converts published weights to a workdir, or back."""
    if HELP & set(argv[1:2]):
        lines = [f"  {name} {inspect.getdoc(function)}" for name, function in CONVERSIONS.items()]
        raise HelpAsked("\n\n".join(line.replace("\n", "\n  ").replace("\n  \n", "\n\n") for line in lines))
    if len(argv) < 2 or argv[1].startswith("-"):
        raise UsageError(f"{argv[0]}: the first word must be one of {', '.join(CONVERSIONS)}")
    return choose("conversion", argv[1], CONVERSIONS)([" ".join(argv[:2]), *argv[2:]])


def openai_adm(argv: list[str]) -> int:
    """--preset=NAME | --channels=… | --model_flags=FILE.json, --checkpoint=FILE --out=DIR: converts ADM's weights.

    Published models have presets. For other networks, give the guided-diffusion flags that they were trained with, on
    the command line or in a JSON file.
    """
    from cfgjax.convert.adm_flags import ALIASES, FLAGS

    given = flags.FlagValues()
    flags.DEFINE_string("preset", None, "Name of a published model.", flag_values=given)
    define_path(
        "model_flags",
        None,
        "JSON file with guided-diffusion's flags, {name: value}; flags on the command line override it.",
        flag_values=given,
    )
    for name, (_, default, what) in FLAGS.items():
        flags.DEFINE_string(name, None, f"{what} Default of guided-diffusion: {default}.", flag_values=given)
    for name, flag in ALIASES.items():
        flags.DEFINE_string(name, None, f"The same as --{flag}.", flag_values=given)
    parse_import(given, argv)
    own_flags = adm_source(given)
    check_import(given)
    checkpoint = begin_import(given)

    from cfgjax.base.weights import read_weights
    from cfgjax.convert import guided_diffusion
    from cfgjax.convert.adm_flags import check_blocks, explained, preset_of
    from cfgjax.convert.layout import with_null_label
    from cfgjax.convert.presets import PRESETS

    if own_flags is None:
        preset = choose("preset", given.preset, PRESETS)
        if given.null_label:
            with_null_label(guided_diffusion.MAKERS[preset.kind](preset.arguments)[0])  # before the file is read
    source = "" if given.preset or given.model_flags else "--"
    weights = read_weights(checkpoint)
    log.info("converting %d arrays of %s …", len(weights.arrays), given.checkpoint)
    if own_flags is not None:
        preset = preset_of(own_flags, weights.arrays, source)
        check_blocks(preset, weights.arrays, source)
    net, image_shape = guided_diffusion.MAKERS[preset.kind](preset.arguments)
    try:
        if given.null_label:
            with_null_label(net)
        params = guided_diffusion.params_of(net, image_shape, weights.arrays)
    except UsageError as e:
        hint = explained(preset, weights.arrays, source)
        similar = [name for name in PRESETS if not explained(PRESETS[name], weights.arrays)]  # only these are built
        if fitting := [name for name in similar if guided_diffusion.fits(PRESETS[name], weights.arrays)]:
            hint = f"it fits {', '.join(fitting)}"
        what = f"is not {given.preset}" if given.preset else "does not fit the flags"
        raise UsageError(f"{given.checkpoint} {what}: {e}{hint and f'; {hint}'}") from e
    write_run(
        given,
        net,
        params,
        weights.choice,
        image_shape=image_shape,
        num_classes=preset.num_classes,
        betas=preset.betas,
        num_timesteps=preset.num_timesteps,
        data_path=f"{preset.data}_train.npz" if preset.data else "train.npz",
        low_res_size=preset.low_res_size,
        v=preset.v,
    )
    return DONE


def adm_source(given: flags.FlagValues) -> dict[str, Any] | None:
    """Returns the flags of guided-diffusion, {name: value}, from the command line and the file; None with --preset.

    Raises UsageError if there is neither a preset nor such flags, if there are both, or if the file cannot be read.
    """
    from cfgjax.base.json_files import read_json
    from cfgjax.convert.adm_flags import ALIASES, FLAGS

    own = {name: given[name].value for name in (*FLAGS, *ALIASES) if given[name].value is not None}
    if given.preset is not None:
        if own or given.model_flags is not None:
            other = f"--{next(iter(own))}" if own else "--model_flags"
            raise UsageError(f"--preset={given.preset} and {other} are both given; a preset sets all of them")
        return None
    if given.model_flags is not None:
        try:
            return read_json(given.model_flags) | own
        except FileNotFoundError:
            raise UsageError(f"--model_flags={given.model_flags}: there is no such file") from None
    if not own:
        required(given, "preset", "checkpoint", "out")
    return own


def diffusers(argv: list[str]) -> int:
    """--checkpoint=FOLDER --out=WORKDIR [--betas=linear|cosine --null_label]: converts diffusers' `UNet2DModel`.

    FOLDER is the folder of a network, or of a pipeline with unet/. What the network predicts is read from the
    pipeline's scheduler, also with --betas. Weights may be .safetensors or .bin, in shards, and
    in a variant such as fp16.
    """
    given = flags.FlagValues()
    what = "Noise schedule, with 1000 timesteps; by default that of the pipeline's scheduler/, or linear without one."
    flags.DEFINE_enum("betas", None, ["linear", "cosine"], what, flag_values=given)
    parse_import(given, argv)
    check_import(given)
    check_pipeline(given.checkpoint)
    checkpoint = begin_import(given)

    from cfgjax.convert import diffusers
    from cfgjax.convert.diffusers_folder import network_folder
    from cfgjax.convert.layout import with_null_label

    folder = network_folder(checkpoint)
    betas, num_timesteps, v = (given.betas, 1000, 0.0) if given.betas else diffusers.process(folder)
    parametrisation = diffusers.parametrisation(folder)
    net, image_shape, config, file, weights = diffusers.read_unet(folder)
    log.info("converting %d arrays of %s …", len(weights.arrays), given.checkpoint)
    if given.null_label:
        with_null_label(net)
    try:
        params = diffusers.params_of(net, image_shape, weights.arrays, config)
    except UsageError as e:
        raise UsageError(f"the weights in {given.checkpoint} do not fit its config.json: {e}") from e
    process = dict(betas=betas, num_timesteps=num_timesteps, v=v, parametrisation=parametrisation)
    read = f"read {file.relative_to(checkpoint)}"
    choice = f"{read}, {weights.choice}" if weights.choice else read
    shapes = dict(image_shape=image_shape, num_classes=net.num_classes)
    write_run(given, net, params, choice, data_path="train.npz", **shapes, **process)
    return DONE


def to_openai_adm(argv: list[str]) -> int:
    """--workdir=DIR --out=FILE.npz|.pt [--ema=RATE --step=N]: exports to guided-diffusion."""
    given = flags.FlagValues()
    define_path("workdir", None, "Folder of the run.", flag_values=given)
    define_path("out", None, "File to write, .npz, or .pt if torch is installed.", flag_values=given)
    flags.DEFINE_float(
        "ema", None, "EMA rate; 0 for the parameters without averaging; by default the run's first.", flag_values=given
    )
    define_step(given)
    no_arguments(parse_flags(given, argv))
    required(given, "workdir", "out")
    ending = place(given.out).suffix
    if ending not in (".npz", ".pt"):
        raise UsageError(f"--out={given.out}: the ending must be .npz, or .pt if torch is installed")
    if ending == ".pt" and importlib.util.find_spec("torch") is None:
        raise UsageError(f"--out={given.out}: a .pt file needs torch, which is not installed; use .npz")
    check_writable("out", given.out)
    begin_command(given, f"converting the run in {given.workdir}")
    open_devices()

    from cfgjax.base.files import writing
    from cfgjax.convert import guided_diffusion
    from cfgjax.models.network import make_network
    from cfgjax.runs.averages import load_params
    from cfgjax.runs.workdir import read_settings

    settings = read_settings(given.workdir)
    if settings.diffusion is not None and (predicted := settings.diffusion.predicts) != "eps":
        raise UsageError(f"{given.workdir}: the network predicts {predicted!r}; guided-diffusion's predict 'eps'")
    params, step = load_params(given.workdir, settings, given.step, given.ema)
    arrays = guided_diffusion.state_dict(make_network(settings), params)
    with writing(given.out) as temporary:
        save_arrays(temporary, arrays)
    print(f"wrote {given.out}: {len(arrays)} arrays of step {step} of {given.workdir}, float32")
    return DONE


def parse_import(given: flags.FlagValues, argv: list[str]) -> None:
    """Adds the flags of an import and parses all flags."""
    define_path("checkpoint", None, "File or folder with the weights to convert.", flag_values=given)
    define_path("out", None, "Workdir to create, a new or an empty folder.", flag_values=given)
    what = 'Add the label "no condition", initialised as the mean of the others, for fine-tuning with dropped labels.'
    flags.DEFINE_bool("null_label", False, what, flag_values=given)
    no_arguments(parse_flags(given, argv))


def check_import(given: flags.FlagValues) -> None:
    """Raises UsageError unless there are a checkpoint and a new or empty workdir."""
    required(given, "checkpoint", "out")
    check_trainable(given.out, "--out")
    out = absolute(given.out)
    for folder in (out,) if is_url(out) else (out, out.parent):  # a complete folder is renamed within its parent
        check_folder(folder, f"--out={given.out}")
    if not is_unused(out):
        raise UsageError(f"--out={given.out} is not empty; nothing was overwritten: give a new folder")


def check_pipeline(checkpoint: AnyPath) -> None:
    """Raises UsageError for the network's folder of a pipeline in a bucket: its scheduler would not be copied."""
    if is_url(checkpoint) and (place(checkpoint).parent / "scheduler" / "scheduler_config.json").exists():
        pipeline = place(checkpoint).parent
        raise UsageError(f"--checkpoint={checkpoint}: give the folder of the pipeline, {pipeline}, with its scheduler")


def begin_import(given: flags.FlagValues) -> Path:
    """Starts jax, and returns the path of the weights, on this machine. If they are large, first logs that it reads."""
    path = place(given.checkpoint)
    path = staged(path.parent) / path.name if path.suffix == ".json" else staged(path)  # shards are next to their index
    files = [path] if path.is_file() else [*path.glob("*"), *path.glob("unet*/*")]
    size = sum(file.stat().st_size for file in files if file.is_file())
    if size > LARGE_BYTES:
        begin_command(given, f"reading {given.checkpoint}, {size / 1e6:,.0f} MB")
    else:
        import_jax()
    open_devices()
    return path


def write_run(
    given: flags.FlagValues, net: "Convertible", params: dict[str, Any], choice: str, **described: Any
) -> None:
    """Writes the workdir --out atomically.

    choice: text about the selected weights. described: arguments of `run_config`.
    """
    import jax
    import jax.numpy as jnp

    from cfgjax.convert.layout import add_null_row, with_null_label
    from cfgjax.convert.run_config import run_config
    from cfgjax.runs.checkpoint import Checkpoints
    from cfgjax.runs.config import to_json
    from cfgjax.runs.diffusion_settings import DiffusionSettings
    from cfgjax.runs.settings import Settings
    from cfgjax.training.state import TrainState

    DiffusionSettings(betas=described["betas"], num_timesteps=described["num_timesteps"])  # raises errors early
    if given.null_label:
        net, params = with_null_label(net), add_null_row(params)
    settings = Settings.from_config(run_config(net, **described))
    # Orbax writes into a bucket itself; config.json is last, without which there is no run
    writing = writing_url(given.out, CONVERTED) if is_url(given.out) else writing_folder(given.out)
    with writing as folder:
        with Checkpoints(folder / "checkpoints", settings.checkpoint) as checkpoints:
            checkpoints.save(0, TrainState(jnp.int32(0), params, {}, ()), [])
        (folder / "config.json").write_text(to_json(settings))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    process = f"{described['num_timesteps']} timesteps of {described['betas']} betas"
    print(f"wrote {given.out}: {size:,} parameters of {given.checkpoint}, {process}{choice and f'; {choice}'}")


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes {key: array} as .npz, or as a state dict in a .pt file."""
    import numpy as np

    if path.suffix == ".npz":
        np.savez(path, **arrays)
        return
    import torch

    torch.save({key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()}, path)


CONVERSIONS = {"openai-adm": openai_adm, "diffusers": diffusers, "to-openai-adm": to_openai_adm}
