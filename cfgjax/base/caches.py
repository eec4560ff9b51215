"""The cache folder, for files that can be regenerated."""

import os
from collections.abc import Mapping
from pathlib import Path


def user_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """Returns $XDG_CACHE_HOME/cfgjax, or ~/.cache/cfgjax by default. Raises RuntimeError without a home directory."""
    return Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cfgjax"
