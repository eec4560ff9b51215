"""Paths that users give. An empty one, as of an unset shell variable, would mean the current folder."""

import os

from absl import flags

from cfgjax.errors import UsageError


class PathParser(flags.ArgumentParser):
    """The parser of a path flag."""

    syntactic_help = "a path"

    def parse(self, argument):
        """The path as it is given. Raises ValueError with the reason where it cannot be meant as one."""
        if reason := wrong_path(argument):
            raise ValueError(reason)
        if argument.startswith("--"):  # as of `--workdir $UNSET --out=x`, without quotes
            raise ValueError("the path is missing: a flag follows (./--name is a file of such a name)")
        return argument

    def flag_type(self):
        """The name of the type in the help."""
        return "path"


def define_path(name, default, description, *, flag_values):
    """Adds a flag whose value is a path: every path flag of every command."""
    flags.DEFINE(PathParser(), name, default, description, flag_values, flags.ArgumentSerializer())


def check_path(name, path):
    """Raises UsageError, naming the argument, unless path can be a path. None is not checked."""
    if path is not None and (reason := wrong_path(path)):
        raise UsageError(f"{name}={os.fspath(path)!r}: {reason}")


def wrong_path(path):
    """Why path, a str or os.PathLike, cannot be meant as a path, or None."""
    text = os.fspath(path)
    if not text.strip():
        return "the path is empty; name a file or folder (. is the current folder)"
    if "\0" in text:
        return "the path contains a NUL character, which no file name can have"
    return None
