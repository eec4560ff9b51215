"""Checks that the extra `plots` is installed, in a module that does not import jax."""

import importlib.util

from cfgjax.base.errors import UsageError


def require_matplotlib(what="pictures of points need"):
    """Raises UsageError if matplotlib, an extra, is not installed. what: subject and verb of the error."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(f"{what} matplotlib: pip install 'cfgjax[plots]'")
