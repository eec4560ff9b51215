"""Errors that the user can fix, and text for their messages."""

import difflib
from collections.abc import Collection, Hashable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from absl.flags import FlagValues

T = TypeVar("T")


class UsageError(ValueError):
    """Bad input: a flag, a config, a file, an array. Its text is one line: what was given and what would be valid.

    The command line prints it without a traceback and exits with 2.
    """


class HelpAsked(Exception):
    """--help or -h among the flags of a command. Its text describes them. flags: absl's definitions of them."""

    def __init__(self, text: str, flags: "FlagValues | None" = None) -> None:
        super().__init__(text)
        self.flags = flags


def nearest(name: object, known: Collection[object]) -> str:
    """Returns ", did you mean 'x'?" with the closest of the known names, or "; known: " and all of them."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f", did you mean {close[0]!r}?" if close else f"; known: {', '.join(map(str, known))}"


def choose(what: str, name: object, known: Mapping[Any, T]) -> T:
    """Returns known[name]. Raises UsageError with the nearest known name if there is none."""
    if not isinstance(name, Hashable) or name not in known:
        raise UsageError(f"unknown {what} {name!r}{nearest(name, known)}")
    return known[name]


def one_line(value: object, longest: int | None = None) -> str:
    """Returns str(value) on one line, cut to `longest` characters, or the name of its type if it is empty."""
    text = " ".join(str(value).split()) or type(value).__name__
    return text if longest is None or len(text) <= longest else f"{text[: longest - 1]}…"


def printable(name: object) -> str:
    """Returns name with line ends, control characters and bytes that are not UTF-8 escaped, for one line of output."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))
