"""A run's folder: its config, its lock, and errors in the user's terms when it cannot be used."""

import fcntl
import os
import secrets
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cfgjax.base.errors import UsageError
from cfgjax.base.files import writing
from cfgjax.base.json_files import read_json, write_json
from cfgjax.base.paths import check_path
from cfgjax.distributed import collectives as processes
from cfgjax.runs.config import check_resumable, from_dict, to_json
from cfgjax.runs.kinds import sections
from cfgjax.runs.metrics_file import last_logged_step
from cfgjax.runs.settings import check_settings

DATA = "data.json"  # of a data set with a hash: `hash`, `source`, `path`, class names `classes`
REQUIRED = {  # keys of config.json, by section
    "data": ("source", "num_classes", "image_shape"),
    "model": ("name",),
    "ema": ("rates",),
    "train": (),
    "checkpoint": ("every_steps",),
    "sample": ("num_steps", "sampler", "guidance", "per_cell"),
}
LATER_SECTIONS = ("evaluate", "cluster")  # absent in older versions
CONFIG_REMEDY = "restore it from a copy, or use another workdir"
SHOWN = 16  # characters of a hash


def read_config(workdir):
    """Returns the config of the run in workdir. A boolean `model.remat` of older versions becomes a name.

    Raises UsageError if the file is damaged or lacks a section or a required value.
    """
    check_path("workdir", workdir)
    path = Path(workdir) / "config.json"
    try:
        found = read_json(path, keys={"model": dict}, remedy=CONFIG_REMEDY)
    except FileNotFoundError:
        raise UsageError(f"{workdir} holds no run: there is no {path}") from None
    try:
        config = from_dict(found)
        if isinstance(config.model.get("remat"), bool):
            with config.ignore_type():
                config.model.remat = "blocks" if config.model.remat else "none"
        check_settings(config)
        check_complete(config, sections(config))
    except (TypeError, ValueError) as e:
        raise UsageError(f"{path} is damaged: {e}; {CONFIG_REMEDY}") from e
    return config


def check_complete(config, names, what="it"):
    """Raises UsageError unless a config, called `what`, has the sections of these names, and their keys of REQUIRED."""
    missing = [name for name in names if name not in config and name not in LATER_SECTIONS]
    if missing:
        raise UsageError(f"{what} lacks the sections {', '.join(missing)}")
    for section in set(names) & set(REQUIRED):
        absent = [key for key in REQUIRED[section] if key not in config[section]]
        if absent:
            raise UsageError(f"{what} lacks {section}.{absent[0]}")


def read_data_hash(workdir):
    """Returns the hash of the data set of the run in workdir, or None if none was recorded."""
    path = Path(workdir) / DATA
    try:
        return read_json(path, keys={"hash": str}, remedy="delete it; it is written anew when the run resumes")["hash"]
    except FileNotFoundError:
        return None


def read_classes(workdir):
    """Returns the class names, by label, of the data set of the run in workdir, or None if they were not recorded."""
    try:
        classes = read_json(Path(workdir) / DATA).get("classes")
    except FileNotFoundError:
        return None
    return [str(name) for name in classes] if isinstance(classes, list) else None


class Claim:
    """Exclusive lock on the workdir (created if missing), released on close or process exit.

    data_hash: of the data set as this process sees it, or None. classes: class names by label, None if unknown.
    Raises UsageError, and changes nothing of the run, if the workdir cannot be written, is in use, or holds a run on
    another data set, without its checkpoints, or with a config that differs in more than run length, cadence and mesh;
    also if a process sees another workdir or other data than the first.
    """

    def __init__(self, workdir, config, data_hash=None, classes=None):
        check_path("workdir", workdir)
        self.path, self._config, self._data_hash, self._classes = Path(workdir), config, data_hash, classes
        self._lock: Any = None  # of the first process
        token = processes.decided(self._take, f"the claim of {workdir}")
        try:
            self._check_others(token)
        except BaseException:
            self.close()
            raise

    def _check_others(self, token):
        """Raises UsageError if a process sees another workdir or other data than the first."""
        lock = self.path / ".lock"
        own = {"same": np.array(token in (lock.read_text() if lock.is_file() else ""))}
        own |= {"data": np.array(self._data_hash or "")}
        parts = processes.allgather(own, "the workdir is seen")
        for i, part in enumerate(parts):
            if not part["same"]:
                raise UsageError(f"process {i} does not see the workdir {self.path} of process 0; it must lie in a "
                                 "file system that all hosts share")  # fmt: skip
            here, first = (str(p["data"])[:SHOWN] for p in (part, parts[0]))
            if part["data"] != parts[0]["data"]:
                there = f"process {i} has the data set with hash {here} at {self._config.data.get('path')}"
                raise UsageError(f"{there}, process 0 the one with hash {first}; all need the same")

    def _take(self):
        """A word that is now in the lock file."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "a+")
        except OSError as e:
            raise UsageError(f"workdir {self.path} cannot be written: {e.strerror}") from e
        try:
            token = self._take_lock()
            self._check_run()
            return token
        except BaseException:
            self.close()
            raise

    def _take_lock(self):
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().partition(" ")[0].strip()
            raise UsageError(f"workdir {self.path} is in use by process {holder}") from None
        token = secrets.token_hex(8)
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()} {token}\n")
        self._lock.flush()
        return token

    def _check_run(self):
        """Compares the run that is here, if there is one, with the config and with its own traces."""
        checkpoints = self.path / "checkpoints"
        steps = [path for path in checkpoints.glob("*") if path.name.isdecimal()]
        if not (self.path / "config.json").exists():
            if steps:
                raise UsageError(f"workdir {self.path} has checkpoints but no config.json; nothing was overwritten")
            return
        saved = read_config(self.path)
        check_resumable(saved, self._config)
        self._check_data()
        logged = last_logged_step(self.path)
        # a save waits for the one before it: past two cadences there was a checkpoint
        expected = logged > 2 * saved.checkpoint.every_steps or (logged and not checkpoints.is_dir())
        if expected and not steps:
            raise UsageError(
                f"workdir {self.path} has metrics up to step {logged} but no checkpoint; nothing was overwritten. "
                "Put its checkpoints back, or take another workdir"
            )

    def _check_data(self):
        """Compares the data set with that which the run was trained on so far."""
        saved, given = read_data_hash(self.path), self._data_hash
        if saved is not None and given is not None and saved != given:
            there = f"{self._config.data.get('path')} now holds the one with hash {given[:SHOWN]}"
            raise UsageError(
                f"the run in workdir {self.path} is on the data set with hash {saved[:SHOWN]}, and {there}; nothing "
                "was overwritten. Put the first back, or take another workdir"
            )

    def write_config(self):
        """Writes config.json and, if the data set has a hash, data.json, in the first process. Each write is atomic.

        For a run of an older version, the data set is recorded from now on.
        """
        if jax.process_index() != 0:
            return
        if self._data_hash is not None:
            data = {name: self._config.data.get(name) for name in ("source", "path")} | {"hash": self._data_hash}
            if self._classes is not None:
                data["classes"] = list(self._classes)
            write_json(self.path / DATA, data)
        with writing(self.path / "config.json") as new:
            new.write_text(to_json(self._config))

    def close(self):
        """Releases the workdir."""
        if self._lock is not None:
            self._lock.close()
