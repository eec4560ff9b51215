"""Finds the config and the weights in a folder that diffusers wrote."""

import os
import re
from pathlib import Path

from cfgjax.base.errors import UsageError

WEIGHTS_NAME = "diffusion_pytorch_model"
WEIGHTS = (f"{WEIGHTS_NAME}.safetensors", f"{WEIGHTS_NAME}.bin")
INDEX = ".index.json"
VARIANT = re.compile(rf"{WEIGHTS_NAME}(\.(?P<variant>[\w-]+))?\.(safetensors|bin)(\.index(\.(?P<old>[\w-]+))?\.json)?")
SHARD_NUMBER = re.compile(r"-\d+-of-\d+")
NETWORKS = ("unet_ema", "unet")  # folders of a pipeline, in order of preference


def network_folder(folder: str | os.PathLike[str]) -> Path:
    """Returns the network's folder: `folder` itself or, for a pipeline, its unet_ema/ or unet/."""
    folder = Path(folder)
    if (folder / "config.json").exists():
        return folder
    for name in NETWORKS:
        if (folder / name / "config.json").exists():
            return folder / name
    if (folder / "model_index.json").exists():
        raise UsageError(f"{folder} is a diffusers pipeline without {NETWORKS[1]}/config.json")
    raise UsageError(f"{folder} is not a diffusers folder: there is no {folder / 'config.json'}")


def weights_file(folder: str | os.PathLike[str]) -> Path:
    """Returns the path of the weights, or of the index of their shards.

    Prefers full precision to variants such as fp16, safetensors to .bin, and one file to shards.
    """
    found = []
    for path in Path(folder).iterdir():
        match = VARIANT.fullmatch(path.name)
        if match and path.is_file() and not SHARD_NUMBER.search(path.name):
            variant = match["variant"] or match["old"] or ""
            is_index = path.name.endswith(".json")
            found.append(((bool(variant), "non_ema" in variant, ".bin" in path.name, is_index, path.name), path))
    if not found:
        shards = [path.name for path in Path(folder).iterdir() if path.name.startswith(WEIGHTS_NAME)]
        but = f", and {shards[0]} without {WEIGHTS[0]}{INDEX}" if shards else ""
        raise UsageError(f"{folder} has neither {' nor '.join(WEIGHTS)}{but}")
    return min(found)[1]
