"""The writes of a checkpoint while they are in progress: how much there is, and failures as soon as they happen."""

import contextlib
import shutil

import jax


class SaveError(OSError):
    """A checkpoint that could not be written."""


def save_error(step, error):
    """error as a SaveError of one line, with the innermost reason of a chain of them."""
    return SaveError(f"saving step {step} failed: {' '.join(str(error).split()).rpartition(': ')[-1]}")


def check_space(directory, step, state):
    """Raises SaveError if the disk has less space than the state takes."""
    needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves(state)), shutil.disk_usage(directory).free
    if needed > free:
        space = f"step {step} needs {needed / 1e9:.3g} GB, there are {free / 1e9:.3g} GB"
        raise SaveError(f"saving step {step} failed: No space left on device: {space}")


class Noticed:
    """A future of Orbax that passes its exception to `notice` before it raises it."""

    def __init__(self, future, notice):
        self._future, self._notice = future, notice

    def result(self, timeout=None):
        """Waits for the write. Raises what it raised."""
        try:
            return self._future.result(timeout)
        except BaseException as e:
            self._notice(e)
            raise

    def cancel(self):
        """Cancels the write."""
        return self._future.cancel()


def noticing(handler, notice):
    """The handler, made to pass the exception of a failed write to `notice` at once.

    Orbax itself raises it only after a barrier, to which the processes that could write do not come.
    """
    save = handler.async_save

    async def async_save(*args, **kwargs):
        return [Noticed(future, notice) for future in await save(*args, **kwargs) or []]

    setattr(handler, "async_save", async_save)  # noqa: B010  Orbax finds a subclass's arguments in no registry
    return handler


def sizes(paths):
    """{path: bytes} of those that are there."""
    found = {}
    for path in paths:
        with contextlib.suppress(OSError):  # a temporary folder may be renamed meanwhile
            found[path] = path.stat().st_size
    return found
