"""The lock of an evaluation's folder."""

import fcntl
from typing import TextIO

from cfgjax.base.errors import UsageError
from cfgjax.base.storage import Place, place
from cfgjax.distributed import collectives


def claim(folder: str | Place) -> TextIO | None:
    """Locks the folder (created if missing) in the first process. Returns the open lock file, None in the others."""
    locks: list[TextIO] = []
    collectives.decided(lambda: locks.append(lock_file(place(folder))), f"the claim of {folder}")
    return locks[0] if locks else None


def lock_file(folder: Place) -> TextIO:
    """Locks the folder and returns the open lock file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a")
    except OSError as e:
        raise UsageError(f"{folder} cannot be written: {e.strerror}") from e
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UsageError(f"another evaluation is running in {folder}; wait for it, or use another --out") from None
    return lock
