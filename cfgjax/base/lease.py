"""Exclusive use of a folder: a lock of the operating system on a disk, a lease in a bucket.

A lease is the newest of the objects .lease/00000001.json, …: its owner rewrites it every third of `seconds`. Who wants
the folder watches it for that long; if it stands still, its owner is gone, and whoever creates the next number first is
the owner. An owner that was away and finds a newer number must stop. Nobody's clock is compared with another's.
"""

import contextlib
import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cfgjax.base import progress, storage
from cfgjax.base.errors import UsageError
from cfgjax.base.storage import AnyPath, Place

log = logging.getLogger("cfgjax")

LEASE_FOLDER = ".lease"
LEASE_SECONDS = 30.0  # without a sign of life after which an owner is taken to be gone
PATIENCE_SECONDS = 0.2  # between two looks whether a stop signal was received


class LeaseLost(OSError):
    """Another process has taken over the folder."""


class NotTaken(Exception):
    """A stop signal was received before the folder was taken."""


def never() -> bool:
    """Returns False: no stop signal was received."""
    return False


def lock(
    folder: AnyPath,
    busy: Callable[[str], str],
    what: str | None = None,
    seconds: float = LEASE_SECONDS,
    stopped: Callable[[], bool] = never,
) -> "Lock | Lease":
    """Returns the `Lock` or `Lease` of a folder, which is created if missing.

    busy: makes the text of the UsageError if the folder is in use, from the name of the process that uses it. what:
    description of the folder for other errors. stopped: if it returns True while a lease is waited for, `NotTaken` is
    raised.
    """
    folder, what = storage.place(folder), what or str(folder)
    try:
        if storage.is_url(folder):
            return Lease(folder, busy, seconds, stopped)
        folder.mkdir(parents=True, exist_ok=True)
        return Lock(folder / ".lock", busy)
    except UsageError:
        raise
    except FileNotFoundError as e:
        gone = f"there is no bucket {storage.bucket_of(folder)}" if storage.is_url(folder) else e.strerror
        raise UsageError(f"{what} cannot be written: {gone}") from e
    except OSError as e:
        raise UsageError(f"{what} cannot be written: {e.strerror or e}") from e


def token_in(folder: AnyPath) -> str | None:
    """Returns the token of the process that has the lock or lease of a folder, as any process sees it."""
    folder = storage.place(folder)
    if storage.is_url(folder):
        return (newest(folder)[1] or {}).get("token")
    path = folder / ".lock"
    return path.read_text().strip().rpartition(" ")[2] if path.is_file() else None


class Lock:
    """The lock of an open file, which the operating system releases when the process ends."""

    def __init__(self, path: Path, busy: Callable[[str], str]) -> None:
        self._path, self._file = path, open(path, "a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().partition(" ")[0].strip()
            self._file.close()
            raise UsageError(busy(f"process {holder}" if holder else "another process")) from None
        self.token = secrets.token_hex(8)
        self._file.truncate(0)
        self._file.write(f"{os.getpid()} {self.token}\n")
        self._file.flush()

    def check(self) -> None:
        """Does nothing: a lock cannot be lost."""

    def close(self) -> None:
        """Releases the lock."""
        self._file.close()


class Lease:
    """The lease of a folder in a bucket, renewed by a thread until it is closed."""

    def __init__(
        self, folder: Place, busy: Callable[[str], str], seconds: float, stopped: Callable[[], bool] = never
    ) -> None:
        self._folder, self._seconds, self.token = folder, seconds, secrets.token_hex(8)
        self._me = {"token": self.token, "process": f"{os.getpid()} on {socket.gethostname()}", **where_i_am()}
        self._beats, self._closed, self._lost = 0, threading.Event(), False
        number, owner = newest(folder)
        if owner is not None and not owner.get("released") and not has_ended(owner):
            self._wait_until_still(number, owner, busy, stopped)
        self._path = folder / LEASE_FOLDER / f"{number + 1:08d}.json"
        self._renewed = now()
        try:
            storage.create_object(self._path, self._content())
        except FileExistsError:
            if token_in(folder) != self.token:  # else it was created by a request whose answer was lost
                raise UsageError(busy("a process that started at the same time")) from None
        if number:
            with contextlib.suppress(OSError):
                (folder / LEASE_FOLDER / f"{number:08d}.json").unlink()
        threading.Thread(target=self._renew, name="lease", daemon=True).start()

    def _wait_until_still(
        self, number: int, owner: dict[str, Any], busy: Callable[[str], str], stopped: Callable[[], bool]
    ) -> None:
        """Raises UsageError if the lease is renewed within its time, `NotTaken` as soon as stopped() returns True."""
        progress.log.info("%s is leased by process %s; waiting up to %g s for a sign of life",
                          self._folder, owner.get("process"), self._seconds)  # fmt: skip
        end = now() + self._seconds
        while now() < end:
            look = now() + self._seconds / 6
            while now() < look:
                if stopped():
                    raise NotTaken
                time.sleep(min(self._seconds / 6, PATIENCE_SECONDS))
            if newest(self._folder) != (number, owner):
                raise UsageError(busy(f"process {owner.get('process')}"))
        log.warning("%s: process %s has not renewed its lease in %g s; taking over",
                    self._folder, owner.get("process"), self._seconds)  # fmt: skip

    def _content(self, **more: Any) -> bytes:
        return json.dumps({**self._me, "beats": self._beats, **more}).encode()

    def _renew(self) -> None:
        """Renews the lease, in a thread."""
        while not self._closed.wait(self._seconds / 3):
            with contextlib.suppress(OSError):  # the client has reported it
                self._renew_once()

    def _renew_once(self) -> None:
        asked = now()  # others see no sign of life before the server has handled the requests, perhaps much later
        number, owner = newest(self._folder)
        if number > int(self._path.stem) or (owner is not None and owner.get("token") != self.token):
            self._lost = True
            self._closed.set()
            return
        self._beats += 1
        self._path.write_bytes(self._content())
        self._renewed = asked

    def check(self) -> None:
        """Raises LeaseLost if another process has taken over. Asks the server only if the lease may have run out."""
        if not self._lost and not self._closed.is_set() and now() - self._renewed > self._seconds:
            self._renew_once()
        if self._lost:
            raise LeaseLost(f"another process has taken over {self._folder} while this one did not renew its lease; "
                            "this one has stopped and writes no more")  # fmt: skip

    def close(self) -> None:
        """Releases the lease."""
        if not self._closed.is_set():
            self._closed.set()
            with contextlib.suppress(OSError):
                if not self._lost:
                    self._path.write_bytes(self._content(released=True))


def newest(folder: Place) -> tuple[int, dict[str, Any] | None]:
    """Returns (number, content) of the newest lease of a folder, (0, None) without any."""
    names = [name for name in storage.objects(folder / LEASE_FOLDER) if name.removesuffix(".json").isdecimal()]
    if not names:
        return 0, None
    name = max(names)
    try:
        content = json.loads((folder / LEASE_FOLDER / name).read_bytes())
    except FileNotFoundError:  # removed by the owner of a newer one
        return newest(folder)
    except ValueError:
        content = {}
    return int(name.removesuffix(".json")), content if isinstance(content, dict) else {}


def now() -> float:
    """Returns seconds of a clock that nobody sets, and that goes on while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def where_i_am() -> dict[str, Any]:
    """Returns what tells on this machine whether the process still runs; nothing where it cannot be known."""
    with contextlib.suppress(OSError):
        return {"machine": machine(), "pid": os.getpid(), "start": start_of(os.getpid())}
    return {}


def machine() -> str:
    """Returns a name of this start of this machine, and of the group of processes that see each other's numbers."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


def start_of(pid: int) -> int:
    """Returns when a process was started, in ticks since the start of the machine. Raises OSError if it has ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] in "ZX":
        raise ProcessLookupError(pid)
    return int(fields[19])


def has_ended(owner: dict[str, Any]) -> bool:
    """Returns whether the owner of a lease was a process on this machine that runs no more."""
    with contextlib.suppress(OSError):
        if owner.get("machine") != machine():
            return False
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return start_of(owner["pid"]) != owner["start"]  # another process has got the number since
        return True
    return False
