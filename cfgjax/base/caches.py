"""Where things are kept that can be made again."""

import os
from pathlib import Path


def user_cache(environ=os.environ):
    """$XDG_CACHE_HOME/cfgjax, in ~/.cache by default. Raises RuntimeError where there is no home."""
    return Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cfgjax"
