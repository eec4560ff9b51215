"""Folders that a command writes to a bucket: the file that marks a folder as complete is the last one."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from cfgjax.base import storage
from cfgjax.base.progress import log
from cfgjax.base.storage import AnyPath, Place


@dataclasses.dataclass(frozen=True)
class FolderFiles:
    """The files of a folder that a command writes.

    marks: those that mark it, or each of its parts, as complete. They are written to a bucket one after another, when
    all other files are there. names: a regular expression of the relative names of the other files.
    """

    marks: tuple[str, ...]
    names: str

    def are_remains(self, names: Collection[str]) -> bool:
        """Returns whether objects of these names are what an interrupted command left: not all, and none besides."""
        *earlier, last = self.marks
        if last in names or not all(name in earlier or re.fullmatch(self.names, name) for name in names):
            return False
        if set(earlier).isdisjoint(names):
            return True
        return os.path.dirname(last) in map(os.path.dirname, names)  # else a part was written alone


def is_unused(path: AnyPath, files: FolderFiles) -> bool:
    """Returns whether a folder can be written: it is empty or absent, or has the remains of a command in a bucket."""
    path = storage.place(path)
    if storage.is_url(path):
        return files.are_remains(storage.objects(path))
    return not (path.exists() and any(path.iterdir()))


def remove_remains(path: AnyPath, files: FolderFiles) -> None:
    """Removes what an interrupted command left in a folder in a bucket. Another command may leave other files."""
    found = storage.objects(path)
    if found and files.are_remains(found):
        log.info("removing %d files of an interrupted command in %s", len(found), path)
        storage.client(path).rm([os.fspath(storage.place(path) / name) for name in found])


@contextlib.contextmanager
def writing_in_place(path: AnyPath, files: FolderFiles) -> Iterator[Place]:
    """Yields the path of a URL, without remains. The block writes the files there, the marks last."""
    remove_remains(path, files)
    yield storage.place(path)


def send_folder(folder: Path, path: AnyPath, files: FolderFiles) -> None:
    """Sends the files of a local folder to a URL, several at a time, and the marks when the others are there."""
    remove_remains(path, files)
    url = storage.place(path)
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    storage.send_all([(folder / name, url / name) for name in names if name not in files.marks])
    for name in files.marks:
        storage.send_file(folder / name, url / name)
