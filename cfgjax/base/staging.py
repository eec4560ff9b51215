"""Local copies of data in buckets, which are read many times: copied once into the cache folder, and opened from there.

A copy is in CACHE/buckets/<scheme>-<digest>/<bucket>/<path>. The digest is that of the URL and of what the server
reports of the objects, so that changed data are copied again, and the path names the URL.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfgjax.base import lease, storage
from cfgjax.base.caches import user_cache
from cfgjax.base.errors import UsageError
from cfgjax.base.progress import Progress, log
from cfgjax.base.storage import AnyPath, Place

if TYPE_CHECKING:
    from fsspec.callbacks import Callback

COPIES = "buckets"
COPY = r"/(?P<scheme>[a-z0-9]+)-[0-9a-f]{16}(?:\.part)?/"  # below the folder of the copies
SPARE_BYTES = 2**28  # that a copy leaves free on the disk
POLL_SECONDS = 0.5

Objects = Mapping[str, Mapping[str, Any]]  # {relative name: what the server knows of it}


def staged(path: AnyPath) -> Path:
    """Returns the path of a local file or folder with the content of `path`, which is itself unless it is a URL.

    One process of a host copies, and the others wait for it. A copy that was interrupted is continued. Raises
    UsageError if there is nothing at the URL, if the disk has no space, or if the objects change in the meantime.
    """
    path = storage.place(path)
    if not storage.is_url(path):
        return path
    objects = objects_at(path)
    scheme, _, inside = str(path).rstrip("/").partition("://")
    digest = hashlib.sha256(json.dumps([str(path), identities(objects)]).encode()).hexdigest()[:16]
    folder = copies_folder() / f"{scheme}-{digest}"
    if not folder.is_dir():
        with locked(folder, path):
            if not folder.is_dir():
                copy_objects(path, objects, folder, inside)
    return folder / inside


def objects_at(path: Place) -> dict[str, dict[str, Any]]:
    """Returns {relative name: what the server knows} of the objects below a URL; of a single file, its name is ""."""
    try:
        client = storage.client(path)
        about = client.info(os.fspath(path))
        objects = {"": about} if about["type"] == "file" else storage.objects(path)
    except FileNotFoundError:
        objects = {}
    except OSError as e:
        raise OSError(f"cannot read {path}: {e}") from e
    found = {
        name: about
        for name, about in objects.items()
        if not name.endswith("/") and lease.LEASE_FOLDER not in name.split("/") and about["type"] == "file"
    }
    if not found:
        raise UsageError(f"{path} does not exist: there is no object of this name and none below it")
    if odd := [name for name in found if name and not {"", ".", ".."}.isdisjoint(name.split("/"))]:
        raise UsageError(f"{path}: the object {odd[0]!r} has a name that no file can have")
    return found


def copies_folder() -> Path:
    """Returns the folder of the copies."""
    folder = user_cache() / COPIES
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"{folder}, for copies of data in buckets, cannot be created: {e.strerror}") from e
    return folder.absolute()


@contextlib.contextmanager
def locked(folder: Path, path: Place) -> Iterator[None]:
    """Holds the lock of a copy. Says so if another process of this host has it, and waits."""
    with open(folder.with_name(f"{folder.name}.lock"), "a") as file:
        waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    log.info("another process copies %s; waiting for it", path)
                waiting = True
                time.sleep(POLL_SECONDS)
        yield


def copy_objects(path: Place, objects: Objects, folder: Path, inside: str) -> None:
    """Copies objects into a new folder. Files that an interrupted copy has completed are not copied again."""
    part = folder.with_name(f"{folder.name}.part")
    target = lambda name: part / inside / name if name else part / inside
    missing = {}
    for name, about in objects.items():
        if not target(name).is_file() or target(name).stat().st_size != about["size"]:
            missing[name] = about["size"]
    check_cache_space(path, sum(missing.values()), part)
    shown = bool(log.handlers) or log.propagate  # not in processes other than the first
    what = f"copying {path} ({len(missing):,} file{'s' * (len(missing) != 1)})"
    with Progress(what, "byte", sum(missing.values()), write=shown) as bar:
        names = sorted(missing)
        for start in range(0, len(names), storage.REQUESTS_AT_ONCE):
            fetch_objects(
                path,
                {name: target(name) for name in names[start : start + storage.REQUESTS_AT_ONCE]},
                missing,
                bar.advance,
            )
    if identities(objects_at(path)) != identities(objects):
        shutil.rmtree(part)
        raise UsageError(f"{path} was changed while it was copied; start again when it is complete")
    os.replace(part, folder)


def identities(objects: Objects) -> dict[str, str]:
    """Returns {relative name: size and checksum} of objects."""
    return {name: storage.identity(about) for name, about in sorted(objects.items())}


def fetch_objects(
    path: Place, targets: Mapping[str, Path], sizes: Mapping[str, int], advance: Callable[[int], object]
) -> None:
    """Copies objects, {relative name: file}, each of which is complete or absent. advance(n): called for n bytes."""
    client = storage.client(path)
    source = lambda name: f"{os.fspath(path).rstrip('/')}/{name}" if name else os.fspath(path)
    arriving = {name: file.with_name(f"{file.name}.part") for name, file in targets.items()}
    for file in arriving.values():
        file.parent.mkdir(parents=True, exist_ok=True)
    client.get(list(map(source, targets)), list(map(str, arriving.values())), callback=counting(advance))
    for name, file in arriving.items():
        if (size := file.stat().st_size) != sizes[name]:
            raise OSError(f"{source(name)} ended after {size:,} of {sizes[name]:,} bytes")
        os.replace(file, targets[name])


def counting(advance: Callable[[int], object]) -> "Callback":
    """Returns fsspec's callback that calls advance(n) for n bytes of any file."""
    from fsspec.callbacks import Callback

    class OfFile(Callback):
        def relative_update(self, inc: int = 1) -> None:
            advance(inc)

    class OfFiles(Callback):
        def branched(self, path_1: str, path_2: str, **kwargs: Any) -> OfFile:
            return OfFile()

    return OfFiles()


def check_cache_space(path: Place, needed: int, part: Path) -> None:
    """Raises UsageError if the disk of the cache has no space for the bytes that are missing."""
    free = storage.free_bytes(part.parent)
    if needed + SPARE_BYTES > free:
        raise UsageError(
            f"copying {path} needs {needed / 1e9:.3g} GB in {part.parent}, whose disk has {free / 1e9:.3g} GB free; "
            "make space, or set XDG_CACHE_HOME to a folder on another disk"
        )


def with_urls(text: str) -> str:
    """Returns a message in which paths of copies are replaced by their URLs."""
    if f"/{COPIES}/" not in text:
        return text
    return re.sub(re.escape(str(copies_folder())) + COPY, lambda match: f"{match['scheme']}://", text)


@contextlib.contextmanager
def opened_locally(path: AnyPath) -> Iterator[Path]:
    """Yields `staged(path)`. Errors in the block name the URL."""
    try:
        yield staged(path)
    except UsageError as e:
        if (text := with_urls(str(e))) == str(e):
            raise
        raise UsageError(text) from e
