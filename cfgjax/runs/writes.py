"""Writes of a checkpoint in progress: their sizes, and their failures as soon as they happen."""

import contextlib
import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jaxtyping import PyTree

from cfgjax.base.storage import Place, free_bytes, is_url, objects

Handler = TypeVar("Handler")


ANSWER = re.compile(r"http_response_code='(\d+)'")


class SaveError(OSError):
    """A checkpoint could not be written."""


def save_error(step: int | None, error: BaseException) -> SaveError:
    """Returns a SaveError with one line, the innermost reason of an error."""
    text = " ".join(str(error).split())
    if answer := ANSWER.search(text):  # of tensorstore, about a bucket
        return SaveError(f"saving step {step} failed: the server answered {answer[1]}")
    return SaveError(f"saving step {step} failed: {text.rpartition(': ')[-1]}")


def check_space(directory: Place, step: int, state: PyTree) -> None:
    """Raises SaveError if the disk has less free space than the state needs. A bucket is taken to have enough."""
    needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves(state)), free_bytes(directory)
    if needed > free:
        space = f"step {step} needs {needed / 1e9:.3g} GB, there are {free / 1e9:.3g} GB"
        raise SaveError(f"saving step {step} failed: No space left on device: {space}")


class Noticed:
    """A future of Orbax that passes its exception to `notice` before raising it."""

    def __init__(self, future: Any, notice: Callable[[BaseException], None]) -> None:
        self._future, self._notice = future, notice

    def result(self, timeout: float | None = None) -> Any:
        """Waits for the write, and raises its exception."""
        try:
            return self._future.result(timeout)
        except BaseException as e:
            self._notice(e)
            raise

    def cancel(self) -> Any:
        """Cancels the write."""
        return self._future.cancel()


def noticing(handler: Handler, notice: Callable[[BaseException], None]) -> Handler:
    """Changes an Orbax handler to pass the exception of a failed write to `notice` at once. Returns the handler.

    Orbax itself raises the exception only after a barrier that the other processes never reach.
    """
    save = getattr(handler, "async_save")  # noqa: B009  a type of Orbax, which only `checkpoint` knows

    async def async_save(*args: Any, **kwargs: Any) -> list[Noticed]:
        return [Noticed(future, notice) for future in await save(*args, **kwargs) or []]

    setattr(handler, "async_save", async_save)  # noqa: B010  not a subclass: Orbax's registry would not know it
    return handler


def sizes(directory: Place, beginning: str) -> dict[str, int]:
    """Returns {path: size in bytes} of the files below those folders in a directory whose names begin with this.

    A temporary folder may be renamed meanwhile: what is no longer there is left out.
    """
    if is_url(directory):
        return {name: about["size"] for name, about in objects(directory).items() if name.startswith(beginning)}
    result = {}
    for top in directory.glob(f"{beginning}*"):
        for folder, _, files in os.walk(top):  # unlike glob, it passes over folders that vanish
            for name in files:
                path = os.path.join(folder, name)
                with contextlib.suppress(OSError):
                    result[path] = os.path.getsize(path)
    return result
