"""Reads numbers from text, such as the values of flags. Only ASCII digits and finite numbers are accepted."""

import math
import re


def whole_number(text: str) -> int:
    """Returns text of ASCII digits as an int. Raises ValueError for any other text."""
    check_ascii(text)
    return int(text)


def real_number(text: str) -> float:
    """Returns ASCII text as a finite float. Raises ValueError for any other text."""
    check_ascii(text)
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


def is_whole_number(text: str) -> bool:
    """Returns whether text is an integer of at most 20 ASCII digits, with or without a minus sign."""
    return re.fullmatch("-?[0-9]{1,20}", text) is not None


def check_ascii(text: str) -> None:
    """Raises ValueError unless text is ASCII: int() and float() also accept the digits of other scripts."""
    if not text.isascii():
        raise ValueError(f"{text} has characters other than 0-9")
