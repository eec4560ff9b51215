"""Errors that are the user's to mend, and words to help."""

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


def printable(name):
    """Returns name with line ends, control characters and bytes that are not UTF-8 escaped, to be printed on a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))
