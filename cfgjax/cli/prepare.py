"""`cfgjax prepare`: makes a data set of small images from a folder, a TFDS data set, an .npz or MNIST's files."""

import functools
import os
import shlex
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from cfgjax.base.errors import UsageError, choose, printable
from cfgjax.base.exits import DONE, PREEMPTED
from cfgjax.base.paths import check_path, define_path
from cfgjax.base.progress import log
from cfgjax.base.staging import opened_locally
from cfgjax.base.storage import AnyPath, Place, expanded, is_url, place
from cfgjax.cli.common import class_list, required
from cfgjax.runs.config import parse_flags

if TYPE_CHECKING:
    from cfgjax.data.dataset import Listing


def prepare(argv: list[str]) -> int:
    """folder|tfds|npz|idx IN OUT --size=64 --crop=adm [--channels=3 --encoding=webp …]: makes a training data set.

    IN is a folder class/…/image, the name of a TFDS data set, an .npz with arrays image and label, or a folder with
    MNIST's files. OUT is the folder to write. cfgjax prepare --verify OUT compares a prepared data set with its hashes.
    """
    given = flags.FlagValues()
    given.set_gnu_getopt(True)
    whole = functools.partial(flags.DEFINE_integer, flag_values=given)
    whole("size", None, "Height and width of the prepared images in pixels; must be given.", lower_bound=1)
    whole(
        "max_errors", 10, "Maximum number of images that may be left out because they cannot be decoded.", lower_bound=0
    )
    what = "How images become squares: adm (short side to --size, then centre crop, as guided-diffusion does), "
    what += "lanczos or area (central square, then resized), or pad (with black)."
    flags.DEFINE_string("crop", "adm", what, flag_values=given)
    whole("channels", 3, "Channels of the prepared images: 3 (RGB) or 1 (grey).")
    flags.DEFINE_string(
        "encoding", "webp", "How images are stored: webp, png (both lossless) or raw.", flag_values=given
    )
    what = "Number of processes that decode, crop and encode; by default one for each CPU core."
    whole("workers", None, what, lower_bound=1)
    what = "With folder: order of the classes, which sets their labels: name (0, 1, 10, 2) or numeric (0, 1, 2, 10)."
    flags.DEFINE_string("class_order", "name", what, flag_values=given)
    what = "Compare the written files with their hashes; with only OUT, compare those of an existing data set."
    flags.DEFINE_bool("verify", False, what, flag_values=given)
    flags.DEFINE_string(
        "split", "train", "With tfds: split of the data set; with idx: train or test.", flag_values=given
    )
    flags.DEFINE_list(
        "class_names",
        None,
        "With idx: names of the classes in the order of their labels, separated by commas; by default the labels.",
        flag_values=given,
    )
    define_path(
        "data_dir",
        None,
        "With tfds: folder of TFDS data sets; by default ~/tensorflow_datasets.",
        flag_values=given,
        local=True,
    )
    what = "With tfds: folder with files that TFDS cannot download."
    define_path("manual_dir", None, what, flag_values=given, local=True)
    words = [expanded(word) for word in parse_flags(given, argv)[1:]]
    if not words:
        raise UsageError(f"{argv[0]}: the first word must be one of {', '.join(PREPARERS)}")
    if given.verify and len(words) == 1 and words[0] not in PREPARERS:
        return verify_folder(words[0])
    kind = choose("kind of data", words[0], PREPARERS)
    least = 2 if words[0] == "tfds" else 3
    if not least <= len(words) <= 3:
        places = "NAME [OUT]" if words[0] == "tfds" else "IN OUT"
        raise UsageError(f"need cfgjax prepare {words[0]} {places} --size=…; given {' '.join(words[1:]) or 'nothing'}")
    if given["class_order"].present and words[0] != "folder":
        raise UsageError(f"--class_order is only for folders; {words[0]} data already have labels")
    if given.class_names is not None and words[0] != "idx":
        raise UsageError(f"--class_names is only for idx; {words[0]} data take their class names from IN")
    for path in words[2:] if words[0] == "tfds" else words[1:]:
        check_path("IN or OUT", path)
    if len(words) == 3:
        required(given, "size")
    if words[0] in ("folder", "idx"):
        check_apart(*words[1:])
    log.info("preparing %s …", words[1])
    if not is_url(words[1]):
        return kind(given, *words[1:])
    with opened_locally(words[1]) as local:
        return kind(given, str(local), *words[2:])


def from_folder(given: flags.FlagValues, path: str, out: str) -> int:
    """Prepares a folder of images class/…/image."""
    from cfgjax.data.sources.folder import list_folder

    listing = list_folder(path, given.class_order)
    print("\n".join(listing.notes), end="\n" if listing.notes else "")
    source = {"kind": "folder", "digest": listing.digest()}
    if given.class_order != "name":
        source["class_order"] = given.class_order
    return prepare_listing(given, listing, source, out)


def from_tfds(given: flags.FlagValues, name: str, out: str | None = None) -> int:
    """Prepares a TFDS data set. Without OUT, TFDS only downloads and writes its own files."""
    from cfgjax.data.sources.tfds import download, list_tfds

    folder = download(name, given.data_dir, given.manual_dir)
    if out is not None:
        check_apart(folder, out)
    listing = list_tfds(folder, given.split)
    if out is None:
        print(f"{name} is prepared in {folder}: data.source='tfds', data.path={folder!r}")
        return DONE
    return prepare_listing(given, listing, {"kind": "tfds", "digest": listing.digest()}, out)


def from_npz(given: flags.FlagValues, path: str, out: str) -> int:
    """Prepares the arrays `image` and `label` of an .npz file."""
    from cfgjax.data.sources.arrays import list_arrays

    listing = list_arrays(path)
    return prepare_listing(given, listing, {"kind": "npz", "digest": listing.digest()}, out)


def from_idx(given: flags.FlagValues, path: str, out: str) -> int:
    """Prepares the IDX files of MNIST, or of a data set in its format."""
    from cfgjax.data.sources.idx import list_idx

    listing = list_idx(path, given.split, given.class_names and tuple(given.class_names))
    return prepare_listing(given, listing, {"kind": "idx", "digest": listing.digest()}, out)


def check_apart(path: AnyPath, out: AnyPath) -> None:
    """Raises UsageError if `out` is `path` or inside of it: the output would become part of the input."""
    from cfgjax.data.images.tree import contains

    if is_url(path) or is_url(out):
        inside = f"{place(out)}/".startswith(f"{place(path)}/")
    else:
        inside = contains(os.path.realpath(path), os.path.realpath(out))
    if inside:
        raise UsageError(f"OUT {out} is inside IN {path}; need a folder outside of it")


PREPARERS: dict[str, Callable[..., int]] = {"folder": from_folder, "tfds": from_tfds, "npz": from_npz, "idx": from_idx}


def prepare_listing(given: flags.FlagValues, listing: "Listing", source: dict[str, Any], out: str | Place) -> int:
    """Prepares a listing into folder `out`. Returns the exit code."""
    from cfgjax.base.cores import usable_cores
    from cfgjax.base.progress import Progress
    from cfgjax.data.prepare import Request
    from cfgjax.data.prepare_in_bucket import prepare_anywhere

    workers = given.workers or usable_cores()
    request = Request(source, given.size, given.crop, given.channels, given.encoding)
    print(f"classes: {class_list(range(len(listing.classes)), listing.classes)}", flush=True)
    bar = functools.partial(Progress, "preparing", "image")
    try:
        about = prepare_anywhere(listing, out, request, workers=workers, max_errors=given.max_errors, progress=bar)
    except KeyboardInterrupt:
        print(f"stopped: finished shards are saved in {printable(out)}; the same command resumes")
        return PREEMPTED
    print("\n".join(prepared_lines(out, about)))
    return verify_folder(out) if given.verify else DONE


def verify_folder(out: AnyPath) -> int:
    """Compares the files of a prepared data set with their hashes. Returns the exit code."""
    from cfgjax.base.progress import Progress
    from cfgjax.data.sources.prepared import read_about, verify

    with opened_locally(out) as local, Progress("verifying", "image", read_about(local)["num_examples"]) as bar:
        about = verify(local, bar.advance)
    print(f"{printable(out)}: {about['num_examples']:,} images match their hashes; hash {about['hash'][:16]}")
    return DONE


def prepared_lines(out: AnyPath, about: Mapping[str, Any]) -> list[str]:
    """Returns lines that describe a prepared data set."""
    from cfgjax.data.sources.own_images import SIZES

    request, size = about["request"], sum(shard["bytes"] for shard in about["shards"])
    left_out = [f"{printable(error['name'])}: {printable(error['reason'])}" for error in about["errors"]]
    lines = [f"left out (cannot be decoded): {error}" for error in left_out]
    lines += [f"{count:,} images {what}" for what, count in about["converted"].items()]
    if absent := [name for name, n in zip(about["classes"], about["counts"], strict=True) if not n]:
        lines.append(f"warning: classes without images: {len(absent)}, such as {printable(repr(absent[0]))}")
    shape = f"{request['size']}×{request['size']}×{request['channels']}"
    made = f"{about['num_examples']:,} images {shape} of {len(about['classes'])} classes, crop {request['crop']}"
    lines.append(f"{printable(out)}: {made}, {request['encoding']}, {size / 1e6:,.1f} MB; hash {about['hash'][:16]}")
    lines.append(f"data.source='prepared', data.path={str(out)!r}, data.crop={request['crop']!r}")
    if request["size"] in SIZES:
        config, workdir = f"--config=own_images:{out}", f"--workdir=runs/{place(out).name}"
        lines.append(printable(f"to train on it: cfgjax train {shlex.quote(config)} {shlex.quote(workdir)}"))
    return lines
