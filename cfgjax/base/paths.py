"""Checks of paths. An empty path, for example from an unset shell variable, would mean the current folder."""

import os

from absl import flags

from cfgjax.base.errors import UsageError
from cfgjax.base.storage import AnyPath, expanded, is_url, unusable

ON_DISK = "this must be a path on a disk, not in a bucket"


class PathParser(flags.ArgumentParser):
    """The parser of a path flag. local: whether URLs of buckets are refused."""

    syntactic_help = "a path"

    def __init__(self, local: bool = False) -> None:
        super().__init__()
        self._local = local

    def parse(self, argument: str) -> str:
        """Returns the path, ~ expanded. Raises ValueError with the reason if it cannot be a path."""
        if reason := wrong_path(argument):
            raise ValueError(reason)
        if self._local and is_url(argument):
            raise ValueError(ON_DISK)
        if argument.startswith("--"):  # from `--workdir $UNSET --out=x`
            raise ValueError("the path is missing: a flag follows (write ./--name for a file of that name)")
        return expanded(argument)

    def flag_type(self) -> str:
        """Returns the name of the type for the help."""
        return "path"


def define_path(
    name: str, default: str | None, description: str, *, flag_values: flags.FlagValues, local: bool = False
) -> None:
    """Adds a flag for a path. Every path flag of every command is defined by this function.

    local: whether the path must be on a disk, not in a bucket.
    """
    flags.DEFINE(PathParser(local), name, default, description, flag_values, flags.ArgumentSerializer())


def check_path(name: str, path: AnyPath | None) -> None:
    """Raises UsageError with the argument's name if path cannot be a path. None is not checked."""
    if path is not None and (reason := wrong_path(path)):
        raise UsageError(f"{name}={os.fspath(path)!r}: {reason}")


def wrong_path(path: AnyPath) -> str | None:
    """Returns the reason why a str or os.PathLike cannot be a path, or None."""
    text = os.fspath(path)
    if reason := unusable(text):
        return reason
    if not text.strip():
        return "the path is empty; name a file or folder (. is the current folder)"
    if "\0" in text:
        return "the path contains a NUL character, which no file name can have"
    return None


def check_on_disk(name: str, path: AnyPath | None) -> None:
    """Raises UsageError with the argument's name if path is in a bucket."""
    if path is not None and is_url(path):
        raise UsageError(f"{name}={os.fspath(path)!r}: {ON_DISK}")


def check_trainable(workdir: AnyPath, name: str = "workdir") -> None:
    """Raises UsageError with the argument's name unless checkpoints can be written to a workdir."""
    check_path(name, workdir)
    if os.fspath(workdir).startswith("s3://"):
        raise UsageError(f"{name}={str(workdir)!r}: checkpoints cannot be kept in s3://, which Orbax does not "
                         "write; use gs://, or a disk that all hosts share")  # fmt: skip
