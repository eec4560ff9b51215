"""Parses and formats numbers of bytes."""

import re

from cfgjax.base.errors import UsageError

UNITS = {"B": 1} | {f"{prefix}B": 1000 ** (i + 1) for i, prefix in enumerate("kMGT")}
UNITS |= {f"{prefix}iB": 1024 ** (i + 1) for i, prefix in enumerate("KMGT")}
MAX_BYTES = 10**15


def parse_bytes(text: str) -> int:
    """Returns the bytes of text such as "16GiB", "80GB" or "1.5e9B". Raises UsageError for other text."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?(?:e[0-9]+)?) ?([a-zA-Z]+)", text)
    units = {unit.lower(): size for unit, size in UNITS.items()}
    if not found or found[2].lower() not in units:
        raise UsageError(f"{text!r} is not a size; need a number and a unit, such as 16GiB or 80GB")
    size = float(found[1]) * units[found[2].lower()]
    if not 1 <= size <= MAX_BYTES:
        raise UsageError(f"{text!r} is out of range; need at least 1 B and at most {bytes_text(MAX_BYTES)}")
    return int(size)


def bytes_text(count: float) -> str:
    """Returns a count of bytes as text with a decimal unit and three significant digits."""
    size, unit = max((size, unit) for unit, size in UNITS.items() if "i" not in unit and (size <= count or size == 1))
    return f"{count / size:.3g} {unit}" if count < 1000 * size else f"{count / size:,.0f} {unit}"
