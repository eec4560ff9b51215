"""Writes of a checkpoint in progress: their sizes, and failures as soon as they happen."""

import contextlib
import shutil

import jax


class SaveError(OSError):
    """A checkpoint that could not be written."""


def save_error(step, error):
    """Returns a SaveError of one line, with the innermost reason of an error."""
    return SaveError(f"saving step {step} failed: {' '.join(str(error).split()).rpartition(': ')[-1]}")


def check_space(directory, step, state):
    """Raises SaveError if the disk has less space than the state takes."""
    needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves(state)), shutil.disk_usage(directory).free
    if needed > free:
        space = f"step {step} needs {needed / 1e9:.3g} GB, there are {free / 1e9:.3g} GB"
        raise SaveError(f"saving step {step} failed: No space left on device: {space}")


class Noticed:
    """Wraps a future of Orbax: passes its exception to `notice` before raising it."""

    def __init__(self, future, notice):
        self._future, self._notice = future, notice

    def result(self, timeout=None):
        """Waits for the write. Raises its exception."""
        try:
            return self._future.result(timeout)
        except BaseException as e:
            self._notice(e)
            raise

    def cancel(self):
        """Cancels the write."""
        return self._future.cancel()


def noticing(handler, notice):
    """Changes a handler to pass the exception of a failed write to `notice` at once, and returns it.

    Orbax itself raises the exception only after a barrier, which the other processes never reach.
    """
    save = handler.async_save

    async def async_save(*args, **kwargs):
        return [Noticed(future, notice) for future in await save(*args, **kwargs) or []]

    setattr(handler, "async_save", async_save)  # noqa: B010  not a subclass: Orbax's registry would not know it
    return handler


def sizes(paths):
    """Returns {path: bytes} of the existing ones."""
    found = {}
    for path in paths:
        with contextlib.suppress(OSError):  # a temporary folder may be renamed meanwhile
            found[path] = path.stat().st_size
    return found
