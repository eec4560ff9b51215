"""Exchanges numpy arrays of any dtype and length, and rows of global arrays, between the processes of a run.

All processes must call these functions in the same order. With a watchdog, each call is a stage.
"""

import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jaxtyping import Shaped
from numpy.typing import ArrayLike

from cfgjax.base.errors import UsageError
from cfgjax.distributed.watchdog import Watchdog

_watchdogs: list[Watchdog] = []  # the watchdog of this process, if there is one


def watched_by(watchdog: Watchdog) -> None:
    """Reports all further stages to a watchdog."""
    _watchdogs[:] = [watchdog]


def stage(what: str) -> None:
    """Reports a stage to the watchdog. All processes must enter the same stages in the same order."""
    for watchdog in _watchdogs:
        watchdog.stage(what)


def timeout_seconds() -> float | None:
    """Returns the watchdog's timeout in seconds, or None without a watchdog."""
    return _watchdogs[0].timeout_seconds if _watchdogs else None


def allgather(arrays: Mapping[str, Any], what: str = "an exchange") -> list[Mapping[str, Any]]:
    """Returns [{name: array} of process 0, of process 1, …] from each process's own {name: array}, bit for bit."""
    if jax.process_count() == 1:
        return [arrays]
    stage(what)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    mine = np.frombuffer(buffer.getvalue(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([len(mine)], np.int32)).ravel()
    padded = multihost_utils.process_allgather(np.pad(mine, (0, lengths.max() - len(mine))))
    parts = [io.BytesIO(row[:length].tobytes()) for row, length in zip(padded, lengths, strict=True)]
    return [dict(np.load(part, allow_pickle=False)) for part in parts]


def gather_rows(array: Shaped[Array, "rows ..."]) -> Shaped[np.ndarray, "rows ..."]:
    """Returns a complete global array as numpy, on every process."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    stage("gathering rows")
    return multihost_utils.process_allgather(array, tiled=True)


def anywhere(truth: object) -> bool:
    """Returns whether `truth` is true on any process."""
    return any(part["truth"] for part in allgather({"truth": np.array(bool(truth))}))


def barrier(name: str) -> None:
    """Waits until every process calls this function."""
    if jax.process_count() > 1:
        stage(name)
        multihost_utils.sync_global_devices(name)


def decided(function: Callable[[], Any], what: str) -> Any:
    """Calls function on process 0 only and returns its value, which must be JSON, on every process.

    If it raises UsageError or OSError, every process raises it. what: name of the decision, for the watchdog.
    """
    if jax.process_count() == 1:
        return function()
    message, error = {}, None
    if jax.process_index() == 0:
        try:
            message = {"value": function()}
        except (UsageError, OSError) as e:
            message, error = {"error": str(e), "usage": isinstance(e, UsageError)}, e
    text = np.frombuffer(json.dumps(message).encode(), np.uint8)
    message = json.loads(allgather({"message": text}, what)[0]["message"].tobytes())
    if error is not None:
        raise error
    if "error" in message:
        raise (UsageError if message["usage"] else OSError)(message["error"])
    return message["value"]


def summed(arrays: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """Returns {name: sum of the arrays of all processes}, added in the order of the processes."""
    parts = allgather(arrays)
    return {name: sum((part[name] for part in parts[1:]), parts[0][name]) for name in arrays}


def concatenated(arrays: Mapping[str, Shaped[np.ndarray, "_rows ..."]]) -> dict[str, Shaped[np.ndarray, "_rows ..."]]:
    """Returns {name: array} with the rows of all processes, in the order of the processes."""
    parts = allgather(arrays)
    return {name: np.concatenate([part[name] for part in parts]) for name in arrays}
