"""The workdir of a run: reading its config, and locking it for one run."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import numpy as np

from cfgjax.base.bucket_clients import patience
from cfgjax.base.errors import UsageError
from cfgjax.base.files import writing
from cfgjax.base.json_files import read_json, write_json
from cfgjax.base.lease import Lease, Lock, NotTaken, lock, never, token_in
from cfgjax.base.paths import check_path, check_trainable
from cfgjax.base.storage import Place, is_url, place
from cfgjax.distributed import collectives
from cfgjax.runs.changes import SHOWN, Hashes, RunChanges, check_resumable
from cfgjax.runs.config import to_json, tuples
from cfgjax.runs.manifest import step_directories
from cfgjax.runs.metrics_file import SEGMENTS, last_logged_step
from cfgjax.runs.sample_options import earlier_sampler
from cfgjax.runs.settings import LATER_SECTIONS, Settings

DATA = "data.json"  # `hash`, `source`, `path` and class names `classes` of a data set that has a hash
CONFIG_REMEDY = "restore it from a copy, or use another workdir"


def read_settings(workdir: str | Place) -> Settings:
    """Returns the settings of the run in workdir, with values of older versions in today's form.

    Raises UsageError if the file is damaged or lacks a section or a required value.
    """
    check_path("workdir", workdir)
    path = place(workdir) / "config.json"
    try:
        values = tuples(read_json(path, keys={"model": dict}, remedy=CONFIG_REMEDY))
    except FileNotFoundError:
        raise UsageError(f"{workdir} holds no run: there is no {path}") from None
    try:
        return Settings.from_config(upgraded_config(values), optional=LATER_SECTIONS)
    except UsageError as e:
        raise UsageError(f"{path} is damaged: {e}; {CONFIG_REMEDY}") from e


def upgraded_config(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of a config.json in today's form: model.remat was a boolean, sample had v and eta."""
    model, sample = values["model"], values.get("sample")
    if isinstance(model.get("remat"), bool):
        model = model | {"remat": "blocks" if model["remat"] else "none"}
    if isinstance(sample, dict):
        if "sampler" in sample:
            sample = sample | {"sampler": earlier_sampler(sample["sampler"], sample)}
        sample = {key: value for key, value in sample.items() if key not in ("v", "eta")}
        values = values | {"sample": sample}
    return values | {"model": model}


def read_data_hash(workdir: str | Place) -> str | None:
    """Returns the hash of the data set of the run in workdir, or None if none was recorded."""
    path = place(workdir) / DATA
    try:
        return read_json(path, keys={"hash": str}, remedy="delete it; a resumed run writes it again")["hash"]
    except FileNotFoundError:
        return None


def read_classes(workdir: str | Place) -> list[str] | None:
    """Returns the class names, by label, of the data set of the run in workdir, or None if they were not recorded."""
    try:
        classes = read_json(place(workdir) / DATA).get("classes")
    except FileNotFoundError:
        return None
    return [str(name) for name in classes] if isinstance(classes, list) else None


class Claim:
    """Exclusive lock on the workdir (created if missing), released on close or process exit.

    data_hash: hash of the data set as this process sees it, or None. classes: class names by label, None if unknown.
    allowed: keys of the config that may change, see `changes`. stopped: returns whether a stop signal was received; if
    so while a lease is waited for, NotTaken is raised. Raises UsageError, and leaves the run unchanged, if the workdir
    cannot be written, is in use, or holds a run that lost its checkpoints, was trained on another data set, or has a
    config that differs in a way that is not allowed; also if this process sees another workdir or other data than the
    first.
    """

    def __init__(
        self,
        workdir: str | Place,
        settings: Settings,
        data_hash: str | None = None,
        classes: Sequence[str] | None = None,
        allowed: Collection[str] = (),
        stopped: Callable[[], bool] = never,
    ) -> None:
        check_trainable(workdir)
        self.path = place(workdir)
        patience(settings.storage.retry_seconds)
        self._settings = settings
        self._data_hash = data_hash
        self._classes = classes
        self._allowed = allowed
        self._stopped = stopped
        self._changes: RunChanges | None = None  # of a run that resumes, in the first process only
        self._lock: Lock | Lease | None = None  # in the first process only
        token = collectives.decided(self._take, f"the claim of {workdir}")
        if token is None:
            raise NotTaken
        try:
            self._check_others(token)
        except BaseException:
            self.close()
            raise

    def _check_others(self, token: str) -> None:
        """Raises UsageError if a process sees another workdir or other data than the first."""
        own = {"same": np.array(token == token_in(self.path))}
        own |= {"data": np.array(self._data_hash or "")}
        parts = collectives.allgather(own, "the workdir is seen")
        for i, part in enumerate(parts):
            if not part["same"]:
                raise UsageError(f"process {i} does not see the workdir {self.path} of process 0; it must lie in a "
                                 "file system that all hosts share, or in a bucket")  # fmt: skip
            here, first = (str(p["data"])[:SHOWN] for p in (part, parts[0]))
            if part["data"] != parts[0]["data"]:
                there = f"process {i} has the data set with hash {here} at {self._settings.data.options.get('path')}"
                raise UsageError(f"{there}, process 0 the one with hash {first}; all need the same")

    def _take(self) -> str | None:
        """Locks the workdir and checks its run. Returns a random token, now in its lock file, or None if stopped."""
        busy = lambda holder: f"workdir {self.path} is in use by {holder}"
        seconds = self._settings.storage.lease_seconds
        try:
            self._lock = lock(self.path, busy, f"workdir {self.path}", seconds, self._stopped)
        except NotTaken:
            return None
        try:
            self._check_run()
            return self._lock.token
        except BaseException:
            self.close()
            raise

    def _check_run(self) -> None:
        """Raises UsageError if the workdir holds a run that does not fit the config or has lost its checkpoints."""
        checkpoints = self.path / "checkpoints"
        steps = step_directories(checkpoints)
        if not (self.path / "config.json").exists():
            if steps:
                raise UsageError(f"workdir {self.path} has checkpoints but no config.json; nothing was overwritten. "
                                 "Restore it, or use another workdir")  # fmt: skip
            return
        saved = read_settings(self.path)
        hashes = Hashes(read_data_hash(self.path), self._data_hash)
        new = check_resumable(saved, self._settings, hashes, self._allowed)
        self._changes = RunChanges(self.path, saved, hashes, new)
        logged = last_logged_step(self.path)
        # a save waits for the previous one, so after two cadences at least one was complete, unless all failed
        expected = logged > 2 * saved.checkpoint.every_steps
        expected |= bool(logged) and not is_url(checkpoints) and not checkpoints.is_dir()
        if expected and not steps:
            none_saved = f", or, if no save ever succeeded, delete {self.path / SEGMENTS}" if is_url(self.path) else ""
            raise UsageError(
                f"workdir {self.path} has metrics up to step {logged} but no checkpoint; nothing was overwritten. "
                f"Restore its checkpoints, or use another workdir{none_saved}"
            )

    def write_config(self, step: int = 0) -> list[dict[str, Any]]:
        """Writes config.json and, if the data set has a hash, data.json, in the first process. Each write is atomic.

        step: at which the run resumes. Returns the changes of its config from there on, which are recorded first. A run
        of an older version, which did not record its data set, gets its data.json here.
        """
        if jax.process_index() != 0:
            return []
        if self._changes is not None:
            self._changes.write(step)
        if self._data_hash is not None:
            data = {name: self._settings.given["data"].get(name) for name in ("source", "path")} | {
                "hash": self._data_hash
            }
            if self._classes is not None:
                data["classes"] = list(self._classes)
            write_json(self.path / DATA, data)
        else:
            (self.path / DATA).unlink(missing_ok=True)  # of another data set, which had a hash
        with writing(self.path / "config.json") as new:
            new.write_text(to_json(self._settings))
        return [] if self._changes is None else self._changes.at(step)

    def check(self) -> None:
        """Raises OSError if this process has lost the workdir to another one, which only a bucket admits."""
        if self._lock is not None:
            self._lock.check()

    def close(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            self._lock.close()
