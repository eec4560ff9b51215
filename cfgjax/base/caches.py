"""The cache folder, for files that can be regenerated."""

import os
from pathlib import Path


def user_cache(environ=os.environ):
    """Returns $XDG_CACHE_HOME/cfgjax, or ~/.cache/cfgjax by default. Raises RuntimeError without a home directory."""
    return Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cfgjax"
