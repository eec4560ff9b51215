"""Lists the image files below a folder. Each real file is listed once, however many links lead to it."""

import os
import stat
from pathlib import Path

from cfgjax.base.errors import UsageError, printable

PassedOver = list[tuple[str, str]]  # [(reason, path)] of files that are not listed

ENDINGS = (".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".avif")
NO_IMAGE, LOOP, REPEATED, DANGLING, SPECIAL = (
    "files that are not images",
    "links that form a loop",
    "links to files or folders that are already listed in the class",
    "links that lead nowhere",
    "devices, pipes and sockets",
)


def is_image_name(name: str) -> bool:
    """Whether a file of this name is treated as an image."""
    return name.lower().endswith(ENDINGS)


def image_files(top: str | Path, passed_over: PassedOver) -> dict[str, str]:
    """Returns {relative path: real path} of the images at any depth below folder `top`, in the order of their paths.

    A file is listed once, by a path without links if it has one. Links are followed unless they lead to a folder that
    contains them or to a file or folder that is already listed. passed_over: list that receives (reason, relative path)
    of everything else. Raises OSError if a folder cannot be read.
    """
    walk = Walk(top, passed_over)
    walk.folder("", walk.top)
    while walk.links:  # files without links are already listed
        walk.link(*walk.links.pop())
    return dict(sorted(walk.files.items()))


def existing_images(top: str | Path, passed_over: PassedOver) -> list[str]:
    """Returns the paths of `image_files`. Raises UsageError if there are none, or if a folder cannot be read."""
    try:
        files = list(image_files(top, passed_over))
    except OSError as e:
        raise UsageError(f"cannot read {printable(e.filename or top)}: {e.strerror}") from e
    if not files:
        raise UsageError(
            f"{printable(top)} has no images (.png, .jpg, .webp, …); it has {len(passed_over)} other entries"
        )
    return files


class Walk:
    """State of `image_files`. files: {relative path: real path}. links: [(relative path, real folder it is in)]."""

    def __init__(self, top: str | Path, passed_over: PassedOver) -> None:
        self.root, self.top, self.passed_over = top, os.path.realpath(top), passed_over
        self.files: dict[str, str] = {}
        self.links: list[tuple[str, str]] = []
        self.seen: set[str] = set()  # real paths of files and folders

    def folder(self, relative: str, real: str) -> None:
        """Lists the files of a folder and of its subfolders, and collects the links."""
        folders = [(relative, real)]
        while folders:
            relative, real = folders.pop()
            if self._is_new(real, relative):
                with os.scandir(os.path.join(self.root, relative)) as entries:
                    for entry in entries:
                        path = os.path.join(relative, entry.name)
                        if entry.is_symlink():
                            self.links.append((path, real))
                        elif not entry.is_dir(follow_symlinks=False):
                            mode = stat.S_IFREG if entry.is_file(follow_symlinks=False) else 0
                            self._file(path, os.path.join(real, entry.name), mode)
                        elif not entry.name.startswith("."):
                            folders.append((path, os.path.join(real, entry.name)))
        self.links.sort(reverse=True)  # independent of the order of the file system

    def link(self, path: str, parent: str) -> None:
        """Lists the target of a link."""
        real = os.path.realpath(os.path.join(self.root, path))
        try:
            mode = os.stat(real).st_mode
        except OSError:
            self.passed_over.append((DANGLING, path))
            return
        if not stat.S_ISDIR(mode):
            self._file(path, real, mode)
        elif contains(real, parent) or contains(real, self.top):
            self.passed_over.append((LOOP, path))
        elif not os.path.basename(path).startswith("."):
            self.folder(path, real)

    def _file(self, path: str, real: str, mode: int) -> None:
        if reason := reason_against(os.path.basename(path), mode):
            self.passed_over.append((reason, path))
        elif self._is_new(real, path):
            self.files[path] = real

    def _is_new(self, real: str, path: str) -> bool:
        """Whether a file or folder is seen for the first time."""
        if real in self.seen:
            self.passed_over.append((REPEATED, path))
            return False
        self.seen.add(real)
        return True


def reason_against(name: str, mode: int) -> str | None:
    """Returns the reason why a file of this name and st_mode is not listed, or None if it is."""
    if not stat.S_ISREG(mode):
        return SPECIAL
    return NO_IMAGE if name.startswith(".") or not is_image_name(name) else None


def contains(folder: str, path: str) -> bool:
    """Whether path is `folder` or below it. Both are real paths."""
    return os.path.commonpath([folder, path]) == folder
