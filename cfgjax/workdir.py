"""A run's folder: its config, its lock, and errors in the user's terms when it cannot be used."""

import fcntl
import os
from pathlib import Path

from cfgjax.config import check_resumable, from_json, to_json
from cfgjax.errors import UsageError


def read_config(workdir):
    """The config of the run in workdir."""
    path = Path(workdir) / "config.json"
    try:
        return from_json(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"{workdir} holds no run: there is no {path}") from None
    except (OSError, ValueError) as e:
        raise UsageError(f"cannot read {path}: {e}") from e


class Claim:
    """The workdir, made if need be, held by this process alone until closed or dead.

    Raises UsageError, with nothing changed, where it cannot be written, is in use by another process, or holds a run
    whose config differs in more than run length, cadence and mesh.
    """

    def __init__(self, workdir, config):
        self.path, self._config = Path(workdir), config
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "a+")
        except OSError as e:
            raise UsageError(f"workdir {workdir} cannot be written: {e.strerror}") from e
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            raise UsageError(f"workdir {workdir} is in use by process {self._lock.read().strip()}") from None
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()
        if (self.path / "config.json").exists():
            check_resumable(read_config(self.path), config)
        elif any((self.path / "checkpoints").glob("*")):
            raise UsageError(f"workdir {workdir} has checkpoints but no config.json; nothing was overwritten")

    def write_config(self):
        """Writes config.json, whole or not at all."""
        new = self.path / "config.json.tmp"
        new.write_text(to_json(self._config))
        os.replace(new, self.path / "config.json")

    def close(self):
        """Lets the workdir go."""
        self._lock.close()
