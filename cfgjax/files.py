"""Files that are whole or absent, their hashes, and arrays out of them without unpickling."""

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
import zipfile
import zlib
from pathlib import Path

import numpy as np

from cfgjax.errors import UsageError


def sha256(path):
    """The hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_beside(path):
    """A path that no other process or call takes, on the file system of path and with its ending."""
    return path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.part.{path.name}")


@contextlib.contextmanager
def writing(path):
    """A temporary path beside path, with its ending, that takes its place when the block ends.

    If the block raises, path is as it was and the temporary file is gone.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing_folder(path):
    """A temporary folder beside path, which is new or empty, that takes its place when the block ends.

    If the block raises, it is gone.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_folder(path, what):
    """Raises UsageError unless the folder exists or can be made, and can be written to. Creates nothing.

    what: the folder in words, with the flag that named it.
    """
    path = Path(path).absolute()
    for folder in (path, *path.parents):
        try:
            mode = os.stat(folder).st_mode
        except FileNotFoundError:
            continue
        except OSError as e:
            raise UsageError(f"{what} cannot be made: {e.strerror}") from e
        if not stat.S_ISDIR(mode):
            raise UsageError(f"{what} cannot be made: {folder} is not a directory")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UsageError(f"{what} cannot be written: no permission to write in {folder}")
        missing = [len(os.fsencode(part)) for part in path.relative_to(folder).parts]
        if max(missing, default=0) > os.pathconf(folder, "PC_NAME_MAX"):
            raise UsageError(f"{what} cannot be made: File name too long")
        return


def read_npz(path):
    """{name: array} of an .npz file. Pickled objects are never loaded.

    Raises UsageError where it cannot be read or holds anything but arrays.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:  # which leaves bad ones open
            arrays = {name: file[name] for name in file.files}
    except (AttributeError, TypeError):  # np.load returned an array
        raise UsageError(f"cannot read {path}: it is one array, not an .npz") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise UsageError(f"cannot read {path}: {' '.join(str(e).split())}") from e
    if wrong := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise UsageError(f"cannot read {path}: its {wrong[0]} is not an array")  # np.load gives other files as bytes
    return arrays
