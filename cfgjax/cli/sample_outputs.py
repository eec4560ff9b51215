"""What `cfgjax sample` writes: a picture, an animation, the arrays of an .npz, or a folder of single images."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from cfgjax.base.errors import UsageError
from cfgjax.base.files import check_folder, writing
from cfgjax.base.folders import is_unused, writing_folder
from cfgjax.base.json_files import write_json
from cfgjax.base.storage import AnyPath, place
from cfgjax.cli.common import check_writable
from cfgjax.runs.data_settings import DataSettings

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Int, Shaped, UInt8
    from PIL import Image

FRAME_MS, LAST_FRAME_MS = 120, 1500
PROTOCOL = "protocol.json"


def kind_of_output(path: AnyPath) -> str:
    """Returns "picture", "animation", "arrays" or "images" by the ending of --out, checked to be writable."""
    from PIL import Image

    ending = place(path).suffix.lower()
    if not ending or str(path).endswith("/"):
        check_new_folder(path)
        return "images"
    check_writable("out", path)
    if ending == ".npz":
        return "arrays"
    if ending == ".gif":
        return "animation"
    kind = Image.registered_extensions().get(ending)
    try:
        Image.new("RGB", (1, 1)).save(io.BytesIO(), kind or "none")
    except Exception as e:  # KeyError: an unknown format; ValueError or OSError: no colour or no writer
        known = ".png or another image format (a grid), .gif (an animation), .npz (arrays), or none (a folder)"
        raise UsageError(f"--out={path}: the ending must be {known}") from e
    return "picture"


def check_new_folder(path: AnyPath) -> None:
    """Raises UsageError unless path is a folder that can be made or is empty, see `folders.is_unused`."""
    check_folder(path, f"--out={path}")
    if not is_unused(path):
        raise UsageError(f"--out={path}: the folder is not empty; give a new one")


def check_output(kind: str, given: flags.FlagValues, num_settings: int) -> None:
    """Raises UsageError if flags do not fit the kind of output."""
    if given.num_samples is not None and kind in ("picture", "animation"):
        raise UsageError(f"--num_samples is for an .npz or a folder; the cells of {given.out} have --per_cell")
    if kind == "arrays" and num_settings > 1:
        raise UsageError(f"--out={given.out}: an .npz has the samples of one setting; these flags give {num_settings}")
    if given.base is not None and kind == "animation":
        raise UsageError(f"--out={given.out}: animations show one model, --workdir, not a cascade")


def check_single_images(kind: str, path: AnyPath, data: DataSettings) -> None:
    """Raises UsageError if single images are wanted of samples that are not images. data: config.data of the run."""
    if kind == "images" and not data.is_image:
        what = "latents" if data.kind == "latent" else "points"
        raise UsageError(f"--out={path}: the samples are {what}, not images; give a .png (a figure) or .npz (arrays)")


def card_text(card: Mapping[str, str]) -> str:
    """Returns the protocol of samples as JSON."""
    return json.dumps(card, ensure_ascii=False)


def write_picture(path: AnyPath, picture: Any, card: Mapping[str, str]) -> str:
    """Writes a picture, with its protocol in a .png ("protocol") or .jpg (comment). Returns a text."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("protocol", card_text(card))
    with writing(path) as new:
        picture.save(new, pnginfo=info, comment=card_text(card).encode())
    return f"{path} ({picture.width}×{picture.height})"


def write_animation(path: AnyPath, frames: "Sequence[Image.Image]", card: Mapping[str, str]) -> str:
    """Writes pictures as an animation that repeats, with its protocol as a comment. Returns a text."""
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    shown: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": durations, "loop": 0}
    with writing(path) as new:
        frames[0].save(new, **shown, comment=card_text(card).encode())
    return f"{path} ({frames[0].width}×{frames[0].height}, {len(frames)} frames)"


def write_npz(
    path: AnyPath,
    drawn: 'Iterable[Shaped[np.ndarray, "n ..."]]',
    labels: 'Int[np.ndarray, " n"]',
    names: Sequence[str],
    card: Mapping[str, str],
) -> str:
    """Writes samples as arr_0 and labels as arr_1, as other evaluators read them, and the protocol. Returns a text."""
    import numpy as np

    (samples,) = drawn

    with writing(path) as new, open(new, "wb") as file:
        np.savez(file, arr_0=samples, arr_1=np.asarray(labels, np.int32), protocol=np.asarray(card_text(card)))
    return f"{path} (arr_0 {samples.dtype} [{', '.join(map(str, samples.shape))}], arr_1 labels)"


def write_images(
    path: AnyPath,
    drawn: 'Iterable[UInt8[np.ndarray, "n height width channels"]]',
    labels: 'Int[np.ndarray, " n"]',
    names: Sequence[str],
    card: Mapping[str, str],
) -> str:
    """Writes a .png of each sample, named by number, label and any setting, and protocol.json. Returns a text."""
    from PIL import Image

    with writing_folder(path, [PROTOCOL]) as folder:
        for images, name in zip(drawn, names, strict=True):
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                setting = "" if len(names) == 1 else f"_{name}"
                shown = image[..., 0] if image.shape[-1] == 1 else image
                Image.fromarray(shown).save(folder / f"{i:06d}_label_{label}{setting}.png")
        write_json(folder / PROTOCOL, card, indent=1)
    return f"{len(labels) * len(names):,} images in {path}"


WRITERS_OF_SAMPLES = {"arrays": write_npz, "images": write_images}
