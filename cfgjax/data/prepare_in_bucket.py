"""Prepared data sets in buckets: made in the cache folder of this machine, then sent, dataset.json last."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cfgjax.base import storage
from cfgjax.base.caches import user_cache
from cfgjax.base.errors import UsageError
from cfgjax.base.lease import LEASE_FOLDER as LEASES
from cfgjax.base.lease import lock
from cfgjax.base.progress import timed
from cfgjax.base.storage import Place
from cfgjax.data.dataset import Listing
from cfgjax.data.prepare import MakeProgress, Request, check_same_request, prepare
from cfgjax.data.sources.prepared import ABOUT, LABELS, REQUEST, REQUEST_KEYS, read_about, read_own


def prepare_anywhere(
    listing: Listing, out: str | Place, request: Request, *, workers: int, max_errors: int, progress: MakeProgress
) -> dict[str, Any]:
    """Creates or completes the set in folder `out`, on a disk or in a bucket. Arguments and errors: see `prepare`.

    A set for a bucket that was interrupted is completed by the same command on the same machine.
    """
    options: dict[str, Any] = {"workers": workers, "max_errors": max_errors, "progress": progress}
    if not storage.is_url(out):
        return prepare(listing, out, request, **options)
    place = storage.place(out)
    busy = lambda holder: f"another cfgjax prepare is running in {out} ({holder})"
    with contextlib.closing(lock(place, busy)) as lease:
        asked = json.loads(json.dumps({**dataclasses.asdict(request), "num_listed": len(listing)}))
        if (about := existing_set(place, asked)) is not None:
            return about
        folder = user_cache() / "prepared" / hashlib.sha256(f"{out} {json.dumps(asked)}".encode()).hexdigest()[:16]
        with naming_bucket(place, folder):
            about = prepare(listing, folder, request, **options)
            shards = (shard["file"] for shard in about["shards"])
            send_set(folder, place, [REQUEST, *shards, LABELS, ABOUT], lease.check)
        shutil.rmtree(folder)
        return about


def existing_set(out: Place, asked: dict[str, Any]) -> dict[str, Any] | None:
    """Returns dataset.json of a complete set in a bucket, None if it is to be made.

    Raises UsageError for another set, for other content, and for a complete set that lacks files.
    """
    objects = {name: about for name, about in storage.objects(out).items() if not name.startswith(f"{LEASES}/")}
    if objects and REQUEST not in objects:
        raise UsageError(f"{out} has other content ({min(objects)}); prepare into a new folder")
    if not objects:
        return None
    check_same_request(out, read_own(out / REQUEST, REQUEST_KEYS), asked)
    if ABOUT not in objects:
        return None
    about = read_about(out)
    for shard in about["shards"]:
        found = objects.get(shard["file"], {}).get("size")
        if found != shard["bytes"]:
            what = "is missing" if found is None else f"has {found:,} bytes, not {shard['bytes']:,}"
            raise UsageError(f"{out} is damaged: {shard['file']} {what}; delete it and prepare the data set again")
    return about


def send_set(folder: Path, out: Place, names: list[str], guard: Callable[[], None]) -> None:
    """Sends the files of a finished set in this order. guard: raises if this process may write no more."""
    size = sum((folder / name).stat().st_size for name in names) / 1e6
    with timed(f"sending {len(names)} files ({size:,.3g} MB) to {out}"):
        for name in names:
            guard()
            storage.send_file(folder / name, out / name)


@contextlib.contextmanager
def naming_bucket(out: Place, folder: Path) -> Iterator[None]:
    """Errors in the block name `out` in place of the folder in which it is made."""
    try:
        yield
    except UsageError as e:
        raise UsageError(str(e).replace(str(folder), str(out))) from e
