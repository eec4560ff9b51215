"""Numbers of bytes, read and written."""

import re

from cfgjax.base.errors import UsageError

UNITS = {"B": 1} | {f"{prefix}B": 1000 ** (i + 1) for i, prefix in enumerate("kMGT")}
UNITS |= {f"{prefix}iB": 1024 ** (i + 1) for i, prefix in enumerate("KMGT")}
MAX_BYTES = 10**15


def parse_bytes(text):
    """Bytes of "16GiB", "80GB" or "1.5e9B"; UsageError for anything else."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?(?:e[0-9]+)?) ?([a-zA-Z]+)", text)
    units = {unit.lower(): size for unit, size in UNITS.items()}
    if not found or found[2].lower() not in units:
        raise UsageError(f"{text!r} is no size; need a number and a unit, such as 16GiB or 80GB")
    size = float(found[1]) * units[found[2].lower()]
    if not 1 <= size <= MAX_BYTES:
        raise UsageError(f"{text!r} is no size: need at least a byte and at most {bytes_text(MAX_BYTES)}")
    return int(size)


def bytes_text(count):
    """A count in the decimal unit that leaves one to three digits before the point, three significant."""
    size, unit = max((size, unit) for unit, size in UNITS.items() if "i" not in unit and (size <= count or size == 1))
    return f"{count / size:.3g} {unit}" if count < 1000 * size else f"{count / size:,.0f} {unit}"
