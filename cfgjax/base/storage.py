"""Where runs, data sets and results lie: on the disk, or in a bucket, as a URL gs://bucket/… or s3://bucket/….

`place` makes a path of either, with the methods of pathlib. An object store has no rename, no lock and no append: files
are written elsewhere and sent as one object, which is whole or absent; locks are in `lease`.
"""

import contextlib
import math
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfgjax.base import bucket_clients
from cfgjax.base.errors import UsageError

if TYPE_CHECKING:
    Place = Path
else:
    Place = os.PathLike  # a pathlib.Path or an epath.Path

URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/*)(.*)", re.DOTALL)  # one letter would be a drive
NOT_IN_BUCKETS = "*?[]#"  # clients take them for patterns, which match other objects, or for the version of an object
BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
REQUESTS_AT_ONCE = 64  # objects that are requested together
_connected: set[str] = set()

AnyPath = str | os.PathLike[str]


def is_url(path: AnyPath) -> bool:
    """Returns whether a path is in a bucket."""
    return os.fspath(path).partition("://")[0] in bucket_clients.CLIENTS


def unusable(text: str) -> str | None:
    """Returns the reason why a text is neither a local path nor a URL that can be used, or None."""
    local = f"(write ./{text} for a local path of that name)"
    if text.startswith("~") and os.path.expanduser(text) == text:
        return f"the home directory of {text.partition('/')[0]} is not known {local}"
    if not (match := URL.fullmatch(text)):
        return None
    scheme, slashes, rest = match.groups()
    bucket, *names = rest.split("/")
    if scheme.lower() not in bucket_clients.CLIENTS:
        if rest and not slashes:  # a local name with a colon
            return None
        if scheme == "file" and slashes:
            return f"write a local path without file: ({'/' + rest})"
        return f"URLs of {' and '.join(f'{name}://' for name in bucket_clients.CLIENTS)} can be used {local}"
    if scheme not in bucket_clients.CLIENTS or slashes != "//" or not BUCKET.fullmatch(bucket):
        characters = "a bucket's name has 3 or more of the characters a-z 0-9 . _ -"
        return f"a URL is {scheme.lower()}://BUCKET/PATH; {characters} {local}"
    if found := next((character for character in NOT_IN_BUCKETS if character in rest), None):
        return f"a path in a bucket cannot have the character {found}, nor any of {' '.join(NOT_IN_BUCKETS)}"
    if {".", ".."}.intersection(names):
        return "a path in a bucket has no . or .. as names of folders; write the complete path"
    return bucket_clients.missing_client(scheme)


def expanded(path: AnyPath) -> str:
    """Returns the text of a path, with the home directory in place of ~ in a local one.

    A local path whose name would be taken for a URL or for ~ without its ./ is returned as an absolute path.
    """
    text = os.fspath(path)
    if is_url(text):
        return text
    text = os.path.expanduser(text)
    name = text[2:].lstrip("/") if text.startswith("./") else ""
    return os.path.abspath(text) if name and (name.startswith("~") or URL.fullmatch(name)) else text


def place(path: AnyPath) -> Place:
    """Returns the path of a local path (~ is the home directory) or of a URL.

    Raises UsageError if the URL is malformed, or the package for it is not installed.
    """
    text = os.fspath(path)
    if reason := unusable(text):
        raise UsageError(f"{text!r}: {reason}")
    if not is_url(text):
        return Path(expanded(text))
    scheme = text.partition("://")[0]
    if scheme not in _connected:
        bucket_clients.connect(scheme)
        _connected.add(scheme)
    from etils import epath

    return epath.Path(text)


def absolute(path: AnyPath) -> Place:
    """Returns the absolute path of a path; that of a URL is itself."""
    path = place(path)
    return path if is_url(path) else path.absolute()


def client(path: AnyPath) -> Any:
    """Returns fsspec's file system for a URL."""
    import fsspec

    place(path)
    return fsspec.filesystem({"gs": "gcs"}.get(scheme := os.fspath(path).partition("://")[0], scheme))


def create_object(path: AnyPath, content: bytes) -> None:
    """Writes bytes to a URL unless there is an object. Raises FileExistsError if there is one."""
    client(path).pipe_file(os.fspath(path), content, mode="create")


def objects(path: AnyPath) -> dict[str, dict[str, Any]]:
    """Returns {relative name: what the server knows of it} of all objects below a URL, by one request per thousand."""
    found = client(path).find(os.fspath(path), detail=True)
    start = len(os.fspath(path).partition("://")[2].rstrip("/")) + 1
    return {name[start:]: about for name, about in found.items() if len(name) > start}


def written_at(path: AnyPath) -> int | str:
    """Returns what changes when the file at path is written again, 0 if there is none."""
    path = place(path)
    if not path.exists():
        return 0
    if not is_url(path):
        return path.stat().st_mtime_ns
    return identity(client(path).info(os.fspath(path)))


def identity(about: Mapping[str, Any]) -> str:
    """Returns the size and checksum that the server reports of an object, as text."""
    known = (f"{key} {about[key]}" for key in ("crc32c", "md5Hash", "ETag") if about.get(key))
    return f"{about['size']} bytes, {next(known, 'no checksum')}"


def size_of(path: AnyPath) -> int:
    """Returns the bytes of a file."""
    return client(path).size(os.fspath(path)) if is_url(path) else os.stat(path).st_size


def subfolders(path: AnyPath) -> list[Place]:
    """Returns the folders in a folder, sorted by name."""
    path = place(path)
    if not is_url(path):
        return sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else []
    try:
        found = client(path).ls(os.fspath(path), detail=True)
    except FileNotFoundError:
        return []
    return [path / name for name in sorted(os.path.basename(a["name"].rstrip("/")) for a in found if is_folder(a))]


def is_folder(about: Mapping[str, Any]) -> bool:
    """Returns whether what a server reports is a folder."""
    return about["type"] == "directory"


def rename(path: AnyPath, name: str) -> None:
    """Gives a file another name in its folder. In a bucket the object is copied, then removed."""
    path = place(path)
    if not is_url(path):
        path.replace(path.with_name(name))
        return
    client(path).cp_file(os.fspath(path), os.fspath(path.with_name(name)))
    client(path).rm_file(os.fspath(path))


def move_folder(path: AnyPath, target: AnyPath) -> None:
    """Moves a folder and all that is in it. In a bucket the objects are copied, then removed."""
    path, target = place(path), place(target)
    if not is_url(path):
        target.parent.mkdir(exist_ok=True)
        shutil.move(path, target)
        return
    for name in objects(path):
        client(path).cp_file(os.fspath(path / name), os.fspath(target / name))
    remove_tree(path)


def send_file(local: AnyPath, path: AnyPath) -> None:
    """Copies a local file to a URL, as one object."""
    client(path).put_file(os.fspath(local), os.fspath(path))


def send_all(pairs: Sequence[tuple[AnyPath, AnyPath]]) -> None:
    """Copies local files to URLs of one server, several at a time. pairs: [(local path, URL)]."""
    for start in range(0, len(pairs), REQUESTS_AT_ONCE):
        local, urls = zip(*pairs[start : start + REQUESTS_AT_ONCE], strict=True)
        client(urls[0]).put([os.fspath(path) for path in local], [os.fspath(url) for url in urls])


@contextlib.contextmanager
def local_file(path: AnyPath) -> Iterator[Path]:
    """Yields the path of a local file with the content of the file at path, which is that file if it is local.

    Raises FileNotFoundError if there is none.
    """
    path = place(path)
    if not is_url(path):
        yield path
        return
    with temporary_folder() as folder:
        client(path).get_file(os.fspath(path), os.fspath(folder / path.name))
        yield folder / path.name


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yields a local folder for files on their way to or from a bucket, and removes it."""
    folder = Path(tempfile.mkdtemp(prefix="cfgjax-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_bucket(path: AnyPath, what: str) -> None:
    """Raises UsageError unless objects can be written below a URL. what: its description for the error."""
    probe = place(path) / f".probe-{secrets.token_hex(4)}"
    try:
        probe.write_bytes(b"")
        probe.unlink()
    except FileNotFoundError:
        raise UsageError(f"{what} cannot be written: there is no bucket {bucket_of(path)}") from None
    except OSError as e:
        raise UsageError(f"{what} cannot be written: {e}") from e


def bucket_of(path: AnyPath) -> str:
    """Returns scheme://bucket of a URL."""
    return "/".join(os.fspath(path).split("/")[:3])


def free_bytes(path: AnyPath) -> float:
    """Returns the free bytes of the disk of a folder, infinity for a bucket."""
    return math.inf if is_url(path) else shutil.disk_usage(path).free


def remove_tree(path: AnyPath) -> None:
    """Removes a folder and all that is in it."""
    if is_url(path):
        client(path).rm(os.fspath(path), recursive=True)
    else:
        shutil.rmtree(path)
