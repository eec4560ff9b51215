"""Whether the extra `plots` is installed; apart from the figures, so that asking does not import jax."""

import importlib.util

from cfgjax.errors import UsageError


def require_matplotlib(what="pictures of points need"):
    """Raises UsageError where matplotlib, an extra, is not installed. what: needs it, with its verb."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(f"{what} matplotlib: pip install 'cfgjax[plots]'")
