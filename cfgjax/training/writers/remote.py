"""What the writers of tracking services share: one remote run per workdir, and no step twice."""

import importlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cfgjax.base.errors import UsageError
from cfgjax.base.json_files import read_json, write_json
from cfgjax.base.storage import Place

log = logging.getLogger("cfgjax")

MOST_WAITING = 10_000  # entries that are kept while the service does not answer


def need(package: str, extra: str) -> Any:
    """Returns a package that a writer imports. Raises UsageError if it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as e:
        raise UsageError(f"config.log.writers: {package} is not installed: pip install 'cfgjax[{extra}]'") from e


class RemoteRun:
    """A run of a tracking service that continues when the run in workdir is resumed.

    workdir/<service>.json has its identity, and the newest step that was sent with the names of its metrics. What the
    service has already is not sent again: a resumed run repeats the steps after its checkpoint, with the same values.
    If the service fails, a warning is logged once, training goes on, and everything is sent later, in order.

    Subclasses have `service`, and `send(step, metrics)` and `send_image(step, name, picture)`, which may raise.
    """

    service: str

    def __init__(self, workdir: Place) -> None:
        self._path, self._failed = workdir / f"{self.service}.json", False
        self._waiting: list[tuple[int, list[str], Callable[[], Any]]] = []
        try:
            self._record = read_json(self._path, keys={"id": str, "step": int, "names": list})
        except FileNotFoundError:
            self._record = {"id": "", "step": -1, "names": []}

    @property
    def identity(self) -> str:
        """Returns the identity of the remote run, "" for a new one."""
        return self._record["id"]

    def set_identity(self, identity: str) -> None:
        """Stores the identity of a new remote run."""
        self._record["id"] = identity
        write_json(self._path, self._record)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the metrics of a step that were not sent before."""
        new = {name: float(value) for name, value in metrics.items() if self._is_new(step, name)}
        if new:
            self._put(step, list(new), lambda: self.send(step, new))

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Sends a picture, uint8 [H, W, C], that was not sent before."""
        if self._is_new(step, name):
            self._put(step, [name], lambda: self.send_image(step, name, picture))

    def send(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends metrics to the service."""
        raise NotImplementedError

    def send_image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Sends a picture to the service."""
        raise NotImplementedError

    def send_all(self) -> None:
        """Tries once more to send what is waiting, and says how much is lost."""
        self._send_waiting()
        if self._waiting:
            log.warning("%s: %d entries were not sent; metrics.jsonl has them", self.service, len(self._waiting))

    def _is_new(self, step: int, name: str) -> bool:
        sent = self._record
        return step > sent["step"] or (step == sent["step"] and name not in sent["names"])

    def _put(self, step: int, names: list[str], send: Callable[[], Any]) -> None:
        self._waiting = [*self._waiting, (step, names, send)][-MOST_WAITING:]
        self._send_waiting()

    def _send_waiting(self) -> None:
        while self._waiting:
            step, names, send = self._waiting[0]
            try:
                send()
            except Exception as e:
                if not self._failed:
                    log.warning("%s does not answer (%s); training goes on, and it is tried again", self.service, e)
                self._failed = True
                return
            self._failed = False
            known = self._record["names"] if step == self._record["step"] else []
            self._record |= {"step": step, "names": [*known, *names]}
            write_json(self._path, self._record)
            self._waiting.pop(0)
