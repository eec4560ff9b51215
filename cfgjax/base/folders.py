"""Folders that a command writes: renamed into place on a disk, and in a bucket complete with their last file.

While a command writes a folder in a bucket, the object PLANNED_FILES in it lists what the command writes. The command
can therefore be repeated if it is interrupted: what it left is known to be its own.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from cfgjax.base import storage
from cfgjax.base.errors import UsageError
from cfgjax.base.files import naming_full_disk, temporary_beside
from cfgjax.base.json_files import read_json, write_json
from cfgjax.base.progress import log
from cfgjax.base.storage import AnyPath, Place

PLANNED_FILES = ".unfinished.json"  # names of files, and of folders with a slash at the end


def is_unused(path: AnyPath) -> bool:
    """Returns whether a folder can be written: it is absent or empty, or has the remains of a command in a bucket."""
    path = storage.place(path)
    if storage.is_url(path) and (path / PLANNED_FILES).exists():
        return remains(path) is not None
    return not (path.exists() and any(path.iterdir()))


def remains(path: Place) -> list[str] | None:
    """Returns the names of the objects that an interrupted command left in a folder, None if there are others too."""
    listed = [str(name) for name in read_json(path / PLANNED_FILES, kind=list)]
    found = [name for name in storage.objects(path) if name != PLANNED_FILES]
    is_own = lambda name: any(name == own or (own.endswith("/") and name.startswith(own)) for own in listed)
    return found if all(map(is_own, found)) else None


@contextlib.contextmanager
def writing_folder(path: AnyPath, marks: Sequence[str] = ()) -> Iterator[Path]:
    """Yields a temporary folder next to path and renames it to path when the block ends.

    path must be unused, see `is_unused`. If path is in a bucket, the files are sent when the block ends, those
    named `marks`, which mark the folder or its parts as complete, last. If the block raises, the temporary folder is
    removed.
    """
    path = storage.place(path)
    if storage.is_url(path):
        with storage.temporary_folder() as folder:
            yield folder
            send_folder(folder, path, marks)
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    temporary.mkdir()
    try:
        with naming_full_disk(path):
            yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def writing_url(path: AnyPath, names: Sequence[str]) -> Iterator[Place]:
    """Context in which a folder in a bucket is written, after what an interrupted command left there is removed.

    names: what PLANNED_FILES lists. Raises UsageError if the folder is in use.
    """
    path = storage.place(path)
    if not is_unused(path):
        raise UsageError(f"{path} is no longer empty; nothing was overwritten. Give a new folder")
    if left := remains(path) if (path / PLANNED_FILES).exists() else []:
        log.info("removing %d files of an interrupted command in %s", len(left), path)
        storage.client(path).rm([os.fspath(path / name) for name in left])
    write_json(path / PLANNED_FILES, list(names))
    yield path
    (path / PLANNED_FILES).unlink()


def send_folder(folder: Path, path: AnyPath, marks: Sequence[str]) -> None:
    """Sends the files of a local folder to a URL, several at a time.

    marks: the names of those that mark it, or its parts, as complete, which are sent in this order after the others.
    """
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    with writing_url(path, names) as url:
        storage.send_all([(folder / name, url / name) for name in names if name not in marks])
        for name in marks:
            storage.send_file(folder / name, url / name)
