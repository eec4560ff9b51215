"""What the processes of a run tell each other: numpy arrays of any dtype and length, and rows of global arrays."""

import io

import jax
import numpy as np
from jax.experimental import multihost_utils


def allgather(arrays):
    """[{name: array} of process 0, of process 1, …] from each process's own {name: array}; bit for bit, any dtype."""
    if jax.process_count() == 1:
        return [arrays]
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    mine = np.frombuffer(buffer.getvalue(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([len(mine)], np.int32)).ravel()
    padded = multihost_utils.process_allgather(np.pad(mine, (0, lengths.max() - len(mine))))
    parts = [io.BytesIO(row[:length].tobytes()) for row, length in zip(padded, lengths, strict=True)]
    return [dict(np.load(part, allow_pickle=False)) for part in parts]


def gather_rows(array):
    """A global array as numpy, whole on every process."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def anywhere(truth):
    """Whether it is true on any process."""
    return any(part["truth"] for part in allgather({"truth": np.array(bool(truth))}))


def barrier(name):
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def summed(arrays):
    """{name: array} with the sum over the processes of each, added in the order of the processes."""
    parts = allgather(arrays)
    return {name: sum((part[name] for part in parts[1:]), parts[0][name]) for name in arrays}


def concatenated(arrays):
    """{name: array} with the processes' rows one after the other."""
    parts = allgather(arrays)
    return {name: np.concatenate([part[name] for part in parts]) for name in arrays}
