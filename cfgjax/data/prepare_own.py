"""Prepares images of the user's own, and names the experiment that trains on them."""

import functools
import os

from cfgjax.base.cores import usable_cores
from cfgjax.base.errors import UsageError, printable
from cfgjax.base.paths import check_trainable
from cfgjax.base.progress import Progress, log
from cfgjax.base.staging import opened_locally
from cfgjax.base.storage import Place, is_url, place
from cfgjax.data.prepare import Request
from cfgjax.data.prepare_in_bucket import prepare_anywhere
from cfgjax.data.sources.own_images import choose_shape, find_own_images
from cfgjax.data.sources.prepared import REQUEST, OtherSet


def own_experiment(
    data: str | Place,
    workdir: str | Place,
    *,
    size: int | None = None,
    labels_from: str | None = None,
    network: str = "small",
) -> str:
    """Returns the name of the experiment for images of the user's own, which are prepared first, in <workdir>_data.

    data: a folder, an .npz, or a prepared set. size, labels_from: see `choose_shape` and `find_own_images`. network:
    "small" or "large". Raises UsageError if there are no images, or they have no labels where these should be.
    """
    check_trainable(workdir)
    own = place(workdir) if is_url(workdir) else os.path.normpath(place(workdir))
    folder = prepare_own(data, f"{own}_data", size, labels_from)
    return f"own_images:{folder}{',large' if network == 'large' else ''}"


def prepare_own(data: str | Place, out: str, size: int | None = None, labels_from: str | None = None) -> str | Place:
    """Returns the folder of the prepared images: `data` itself if it is one, else `out`, which is made or completed."""
    if (place(data) / REQUEST).exists():
        return data
    log.info("looking at %s …", data)
    with opened_locally(data) as local:
        found = find_own_images(local, labels_from)
        listing = found.listing
        size, channels, why = choose_shape(listing, size)
    for note in getattr(listing, "notes", ()):
        print(note)
    kind = "grey" if channels == 1 else "colour"
    print(f"{data}: {len(listing):,} images, {len(listing.classes)} classes; labels: {found.how}")
    print(f"size {size}×{size}, {kind} ({why}); --size and --labels_from change this")
    request = Request({"kind": "own", "digest": listing.digest()}, size, "adm", channels, "webp")
    workers = usable_cores()
    bar = functools.partial(Progress, "preparing", "image")
    most = max(10, len(listing) // 100)
    try:
        about = prepare_anywhere(listing, out, request, workers=workers, max_errors=most, progress=bar)
    except OtherSet as e:
        raise UsageError(
            f"{out} was prepared from other images than {data}, or with other flags; use another --workdir, or delete "
            f"{out} and add --allow_changes=data.path to continue the run with these"
        ) from e
    for error in about["errors"]:
        print(f"left out (cannot be decoded): {printable(error['name'])}: {printable(error['reason'])}")
    print(f"prepared {about['num_examples']:,} images in {out}")
    return out
