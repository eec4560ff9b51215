"""Atomic writes of files and folders, hashes, and arrays read from files without unpickling."""

import contextlib
import errno
import hashlib
import io
import math
import os
import secrets
import stat
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np

from cfgjax.base import storage
from cfgjax.base.errors import UsageError, one_line
from cfgjax.base.storage import AnyPath

MAGIC = np.lib.format.MAGIC_PREFIX
LOCAL_HEADER_BYTES = 30  # before the name of a zip entry
ENCRYPTED = 1  # bit of a zip entry's flags
MAX_RATIO = 1032  # largest compression ratio of deflate
BOMB_BYTES, BOMB_RATIO = 2**28, 200
CHUNK = 2**22
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
CGROUP_LIMITS = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]


def sha256(path: AnyPath) -> str:
    """Returns the hexadecimal SHA-256 of a file."""
    with storage.place(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_beside(path: Path) -> Path:
    """Returns a unique path in the same folder as path and with the same ending."""
    return path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.part.{path.name}")


@contextlib.contextmanager
def naming_full_disk(path: AnyPath) -> Iterator[None]:
    """Adds path to the error of a full disk, which the operating system raises without a file name."""
    try:
        yield
    except OSError as e:
        if e.errno in DISK_FULL and e.filename is None:
            e.filename = os.fspath(path)
        raise


@contextlib.contextmanager
def writing(path: AnyPath) -> Iterator[Path]:
    """Yields a temporary path next to path, with the same ending, and renames it to path when the block ends.

    If path is in a bucket, the temporary file is on the disk, and is sent as one object. If the block raises, path is
    unchanged and the temporary file is removed.
    """
    path = storage.place(path)
    if storage.is_url(path):
        with storage.temporary_folder() as folder:
            yield folder / path.name
            storage.send_file(folder / path.name, path)
        return
    temporary = temporary_beside(path)
    try:
        with naming_full_disk(path):
            yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_folder(path: AnyPath, what: str) -> None:
    """Raises UsageError unless the folder exists or can be created, and is writable. Creates nothing.

    what: description of the folder for the error, with its flag.
    """
    path = storage.absolute(path)
    if storage.is_url(path):
        storage.check_bucket(path, what)
        return
    for folder in (path, *path.parents):
        try:
            mode = os.stat(folder).st_mode
        except FileNotFoundError:
            continue
        except OSError as e:
            raise UsageError(f"{what} cannot be created: {e.strerror}") from e
        if not stat.S_ISDIR(mode):
            raise UsageError(f"{what} cannot be created: {folder} is not a directory")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UsageError(f"{what} cannot be written: no permission to write in {folder}")
        missing = [len(os.fsencode(part)) for part in path.relative_to(folder).parts]
        if max(missing, default=0) > os.pathconf(folder, "PC_NAME_MAX"):
            raise UsageError(f"{what} cannot be created: File name too long")
        return


def read_npz(path: AnyPath) -> dict[str, np.ndarray]:
    """Returns {name: array} of an .npz file. Pickled objects are never loaded.

    Raises UsageError, before it allocates memory, if the file cannot be read, has anything but arrays, or declares
    more bytes than it has or than fit into memory.
    """
    with reading(path) as file:
        if file.read(len(MAGIC)) == MAGIC:
            raise ValueError("it is one array, not an .npz")
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            check_entries(archive)
            if other := [entry.filename for entry in entries if not entry.filename.endswith(".npy")]:
                raise ValueError(f"its entry {other[0]} is not an array")
            return {entry.filename.removesuffix(".npy"): _read_entry(archive, entry) for entry in entries}


def read_npy(path: AnyPath) -> np.ndarray:
    """Returns the array of an .npy file, checked as `read_npz` does."""
    with reading(path) as file:
        size = os.fstat(file.fileno()).st_size
        check_memory(size)
        return _read_array(file, size)


@contextlib.contextmanager
def reading(path: AnyPath) -> Iterator[io.BufferedReader]:
    """Opens the regular file at path for reading. Errors in the block become a UsageError with the file's name.

    A file in a bucket is copied to the disk first.
    """
    try:
        with storage.local_file(path) as local:
            check_regular(local)
            with open(local, "rb") as file:
                yield file
    except UsageError:
        raise
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror or e}") from e
    except MemoryError as e:
        raise UsageError(f"cannot read {path}: it needs more memory than is available") from e
    except Exception as e:  # a damaged archive or header may raise anything
        raise UsageError(f"cannot read {path}: {one_line(e, 300)}") from e


def check_regular(path: AnyPath) -> None:
    """Raises ValueError for a FIFO, a device or a socket: opening or reading one may block forever."""
    if not stat.S_ISREG(mode := os.stat(path).st_mode) and not stat.S_ISDIR(mode):
        raise ValueError("it is not a regular file")


def check_entries(archive: zipfile.ZipFile) -> None:
    """Raises ValueError if entries of an open zip archive overlap, declare impossible sizes or do not fit into memory.

    zipfile never reads more of an entry than its declared size.
    """
    entries, end = sorted(archive.infolist(), key=lambda entry: entry.header_offset), archive.start_dir
    if len({entry.filename for entry in entries}) < len(entries):
        raise ValueError("it has several entries with the same name")
    starts = [entry.header_offset for entry in entries] + [end]
    for entry, following in zip(entries, starts[1:], strict=True):
        name, held, declared = entry.filename, entry.compress_size, entry.file_size
        if entry.header_offset + LOCAL_HEADER_BYTES + len(entry.orig_filename) + held > following:
            raise ValueError(f"its entry {name!r} overlaps with the next one")
        if entry.flag_bits & ENCRYPTED:
            raise ValueError(f"its entry {name!r} is encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"its entry {name!r} is compressed by a method other than deflate")
        if entry.compress_type == zipfile.ZIP_STORED and held != declared:
            raise ValueError(f"its entry {name!r} declares {declared:,} bytes but has {held:,}")
        if declared > MAX_RATIO * (held + 1):
            raise ValueError(f"its entry {name!r} declares {declared:,} bytes, more than its {held:,} can hold")
        if declared > BOMB_BYTES and declared > BOMB_RATIO * held:
            raise ValueError(f"its entry {name!r} unpacks {held:,} bytes to {declared:,}, an implausible ratio")
    check_memory(sum(entry.file_size for entry in entries))


def check_memory(needed: int) -> None:
    """Raises ValueError if `needed` bytes are more than the available memory."""
    available = available_memory()
    if available is not None and needed > available:
        raise ValueError(f"it needs {needed / 2**30:,.1f} GiB of memory; {available / 2**30:,.1f} GiB are available")


def available_memory() -> int | None:
    """Returns the bytes of available memory, at most the control group's limit, or None if unknown."""
    known = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        known.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    for limit in CGROUP_LIMITS:  # not the group's usage, which includes cached files
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
            known.append(int(Path(limit).read_text()))
    return min(known, default=None)


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """Returns the array of an .npy in an archive."""
    try:
        with archive.open(entry) as file:
            return _read_array(cast(io.BufferedIOBase, file), entry.file_size)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise ValueError(f"{e} (its {entry.filename.removesuffix('.npy')})") from e


def _read_array(file: io.BufferedIOBase, size: int) -> np.ndarray:
    """Returns the array in an open .npy file of `size` bytes. Raises ValueError if the array has another size."""
    shape, fortran_order, dtype, header_size = _read_header(file)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded")
    if not dtype.itemsize:
        raise ValueError(f"its items of dtype {dtype} have no bytes")
    declared, held = math.prod(shape) * dtype.itemsize, size - header_size
    if declared != held:
        raise ValueError(f"shape {shape} and dtype {dtype} declare {declared:,} bytes; the file has {held:,}")
    content = np.empty(declared, np.uint8)
    view, done = content.data, 0
    while done < declared:
        if not (count := file.readinto(view[done : done + CHUNK])):
            raise EOFError(f"it ends after {done:,} of {declared:,} bytes")
        done += count
    file.read(1)  # so that zipfile checks the CRC of an empty array too
    array = content.view(dtype)
    if dtype.kind == "U" and (content.view(f"{dtype.byteorder}u4") > sys.maxunicode).any():
        raise ValueError("its text has characters that Unicode does not have")
    return array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)


def _read_header(file: io.BufferedIOBase) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Returns (shape, whether in Fortran order, dtype, bytes read) of an open .npy file."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"its .npy format version {version[0]}.{version[1]} is not supported")
    counted = _Counted(file)
    try:
        shape, fortran_order, dtype = readers[version](counted)
    except (RecursionError, MemoryError, SyntaxError, TypeError) as e:
        raise ValueError(f"its header is damaged ({type(e).__name__})") from e
    if any(isinstance(n, bool) or n < 0 for n in shape):
        raise ValueError(f"its shape is {shape}")
    return shape, fortran_order, dtype, np.lib.format.MAGIC_LEN + counted.count


class _Counted:
    """A file that counts the bytes read from it."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self.file, self.count = file, 0

    def read(self, size: int = -1, /) -> bytes:
        data = self.file.read(size)
        self.count += len(data)
        return data
