"""What the processes of a run tell each other: numpy arrays of any dtype and length, and rows of global arrays.

All of them call these functions in the same order. Where a watchdog watches them, each call is a stage to it.
"""

import io
import json

import jax
import numpy as np
from jax.experimental import multihost_utils

from cfgjax.base.errors import UsageError

_watchdogs: list = []  # the one that watches this process, if there is one


def watched_by(watchdog):
    """From here on stages are told to a `cluster.watchdog.Watchdog`."""
    _watchdogs[:] = [watchdog]


def stage(what):
    """All processes come to this point, one after the other in the same order of stages."""
    for watchdog in _watchdogs:
        watchdog.stage(what)


def timeout_seconds():
    """In how many seconds the watchdog finds a fault, None where there is none."""
    return _watchdogs[0].timeout_seconds if _watchdogs else None


def allgather(arrays, what="an exchange"):
    """[{name: array} of process 0, of process 1, …] from each process's own {name: array}; bit for bit, any dtype."""
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


def gather_rows(array):
    """A global array as numpy, whole on every process."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    stage("rows are gathered")
    return multihost_utils.process_allgather(array, tiled=True)


def anywhere(truth):
    """Whether it is true on any process."""
    return any(part["truth"] for part in allgather({"truth": np.array(bool(truth))}))


def barrier(name):
    """Waits until every process is here."""
    if jax.process_count() > 1:
        stage(name)
        multihost_utils.sync_global_devices(name)


def decided(function, what):
    """function() of process 0, a JSON value, the same on every process: the others do not call it.

    UsageError and OSError that it raises are raised on every process. what: that is decided, in words.
    """
    if jax.process_count() == 1:
        return function()
    told, error = {}, None
    if jax.process_index() == 0:
        try:
            told = {"value": function()}
        except (UsageError, OSError) as e:
            told, error = {"error": str(e), "usage": isinstance(e, UsageError)}, e
    text = np.frombuffer(json.dumps(told).encode(), np.uint8)
    told = json.loads(allgather({"told": text}, what)[0]["told"].tobytes())
    if error is not None:
        raise error
    if "error" in told:
        raise (UsageError if told["usage"] else OSError)(told["error"])
    return told["value"]


def summed(arrays):
    """{name: array} with the sum over the processes of each, added in the order of the processes."""
    parts = allgather(arrays)
    return {name: sum((part[name] for part in parts[1:]), parts[0][name]) for name in arrays}


def concatenated(arrays):
    """{name: array} with the processes' rows one after the other."""
    parts = allgather(arrays)
    return {name: np.concatenate([part[name] for part in parts]) for name in arrays}
