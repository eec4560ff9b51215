"""Kinds of config values and options: what a value must be, with the text for error messages."""

import dataclasses
import math
import numbers
import struct
from collections.abc import Callable
from typing import Any

from cfgjax.base.errors import one_line

MAX_INT = 2**31 - 1  # steps are counted in int32
MAX_PER_CELL = 10_000  # samples in a cell of a picture


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of value. `admits(value)`: whether a value is of this kind. `text` describes the kind in errors."""

    text: str
    admits: Callable[[Any], bool]

    def __or__(self, other: "Kind") -> "Kind":
        return Kind(f"{self.text} or {other.text}", lambda value: self.admits(value) or other.admits(value))


def integer(low: int = 0, high: int = MAX_INT) -> Kind:
    """Returns the kind of integers from low to high inclusive."""
    text = f"an integer of at least {low}" + ("" if high == MAX_INT else f" and at most {high}")
    return Kind(text, lambda v: isinstance(v, numbers.Integral) and not isinstance(v, bool) and low <= int(v) <= high)


def real(text: str = "a number that is finite in float32", within: Callable[[float], bool] = lambda v: True) -> Kind:
    """Returns the kind of numbers that are finite when rounded to float32 and then satisfy `within`."""
    number = lambda v: isinstance(v, numbers.Real) and not isinstance(v, bool)
    return Kind(text, lambda v: number(v) and math.isfinite(in_float32(v)) and within(in_float32(v)))


def several(kind: Kind, text: str, *, least: int = 1, lengths: tuple[int, ...] | None = None) -> Kind:
    """Returns the kind of tuples of another kind, with at least `least` values or with one of `lengths`."""
    fits = lambda v: len(v) >= least if lengths is None else len(v) in lengths
    return Kind(text, lambda v: isinstance(v, (tuple, list)) and fits(v) and all(map(kind.admits, v)))


def one_of(*values: str) -> Kind:
    """Returns the kind that consists of some strings."""
    return Kind(" or ".join(map(repr, values)), lambda v: isinstance(v, str) and v in values)


def in_float32(value: numbers.Real) -> float:
    """Returns a number rounded to float32: 1e39 and 10**400 are infinite, 1e-50 is 0, 1 - 1e-9 is 1."""
    try:
        return struct.unpack("f", struct.pack("f", float(value)))[0]
    except OverflowError:
        return math.inf


NONE = Kind("None", lambda v: v is None)
YES_NO = Kind("True or False", lambda v: isinstance(v, bool))
TEXT = Kind("a non-empty string without NUL", lambda v: isinstance(v, str) and bool(v.strip()) and "\0" not in v)
NUMBER = real()
POSITIVE = real("a number that is finite and above 0 in float32", lambda v: v > 0)
NOT_NEGATIVE = real("a number of at least 0 that is finite in float32", lambda v: v >= 0)
BELOW_ONE = real("a number in [0, 1) in float32", lambda v: 0 <= v < 1)
SHARE = real("a number in [0, 1]", lambda v: 0 <= v <= 1)
COUNT = integer(1)
WIDTH = integer(1, 2**16)  # of a layer: XLA aborts the process where the size of an array overflows
NUMBERS = several(NUMBER, "a non-empty tuple of finite numbers")
ALL_LEFT = Kind("-1 (all that are left)", lambda v: v == -1 and isinstance(v, numbers.Integral))


def shown(value: object) -> str:
    """Returns the text of a value for an error message, on one line and truncated if it is long."""
    try:
        return one_line(repr(value), 80)
    except ValueError:  # Python does not convert integers of thousands of digits
        return "an integer with too many digits"
