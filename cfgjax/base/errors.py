"""Errors that the user can fix, and text for their messages."""

import difflib
from collections.abc import Hashable


class UsageError(ValueError):
    """Bad input: a flag, a config, a file, an array. Its text is one line that says what was given and what would do.

    The command line prints it without a traceback and exits with 2.
    """


class HelpAsked(Exception):
    """--help or -h among the flags of a command. Its text describes them."""


def nearest(name, known):
    """ ", did you mean 'x'?" for the closest of the known names, or the list of them all."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f", did you mean {close[0]!r}?" if close else f"; known: {', '.join(map(str, known))}"


def choose(what, name, known):
    """known[name], or a UsageError that names the nearest."""
    if not isinstance(name, Hashable) or name not in known:
        raise UsageError(f"unknown {what} {name!r}{nearest(name, known)}")
    return known[name]


def one_line(value, longest=None):
    """Returns the text of an error or another value on one line, cut to `longest` characters; an empty one's type."""
    text = " ".join(str(value).split()) or type(value).__name__
    return text if longest is None or len(text) <= longest else f"{text[: longest - 1]}…"


def printable(name):
    """Returns name for a line of output: line ends, control characters and bytes that are not UTF-8 are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))
