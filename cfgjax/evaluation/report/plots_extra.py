"""Checks that the extra `plots` is installed. Does not import jax."""

import importlib.util

from cfgjax.base.errors import UsageError


def require_matplotlib(what: str = "pictures of points need") -> None:
    """Raises UsageError if matplotlib, an optional dependency, is missing. what: subject and verb of the error."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(f"{what} matplotlib: pip install 'cfgjax[plots]'")
