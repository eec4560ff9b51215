"""Kinds of config values: each has a test that a value must pass, a text for errors, and a conversion.

A field of a section has its kind in its type, `Annotated[int, integer(1)]`, for which this module has short names.
"""

import dataclasses
import math
import numbers
import struct
import types
from collections.abc import Callable
from typing import Annotated, Any, Union, get_args, get_origin

from cfgjax.base.errors import one_line

MAX_INT = 2**31 - 1  # steps are counted in int32
MAX_LEVELS = 1_000_000  # of a process; as MAX_STEPS of cfgjax.diffusion.schedules, which imports jax


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of value.

    text: describes the kind in errors. admits: whether a value is of this kind. convert: an admitted value as the plain
    Python value that the code uses.
    """

    text: str
    admits: Callable[[Any], bool]
    convert: Callable[[Any], Any] = lambda value: value

    def __or__(self, other: "Kind") -> "Kind":
        return Kind(
            f"{self.text} or {other.text}",
            lambda value: self.admits(value) or other.admits(value),
            lambda value: (self if self.admits(value) else other).convert(value),
        )


def integer(low: int = 0, high: int = MAX_INT) -> Kind:
    """Returns the kind of integers from low to high inclusive."""
    text = f"an integer of at least {low}" + ("" if high == MAX_INT else f" and at most {high}")
    is_integer = lambda v: isinstance(v, numbers.Integral) and not isinstance(v, bool)
    return Kind(text, lambda v: is_integer(v) and low <= int(v) <= high, int)


def real(text: str = "a number that is finite in float32", within: Callable[[float], bool] = lambda v: True) -> Kind:
    """Returns the kind of numbers that are finite when rounded to float32 and then satisfy `within`."""
    is_number = lambda v: isinstance(v, numbers.Real) and not isinstance(v, bool)
    return Kind(text, lambda v: is_number(v) and math.isfinite(in_float32(v)) and within(in_float32(v)), float)


def several(kind: Kind, text: str, *, least: int = 1, lengths: tuple[int, ...] | None = None) -> Kind:
    """Returns the kind of tuples of another kind, with at least `least` values or with one of `lengths`."""
    fits = lambda v: len(v) >= least if lengths is None else len(v) in lengths
    admits = lambda v: isinstance(v, (tuple, list)) and fits(v) and all(map(kind.admits, v))
    return Kind(text, admits, lambda v: tuple(map(kind.convert, v)))


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
COUNT = integer(1)
NUMBER = real()
NOT_NEGATIVE = real("a number of at least 0 that is finite in float32", lambda v: v >= 0)
POSITIVE = real("a number that is finite and above 0 in float32", lambda v: v > 0)
BELOW_ONE = real("a number in [0, 1) in float32", lambda v: 0 <= v < 1)
NUMBERS = several(NUMBER, "a non-empty tuple of finite numbers")

Count = Annotated[int, COUNT]
Levels = Annotated[int, integer(2, MAX_LEVELS)]
Seed = Annotated[int, integer(0, 2**32 - 1)]
Text = Annotated[str, TEXT]
Number = Annotated[float, NUMBER]
NotNegative = Annotated[float, NOT_NEGATIVE]
Positive = Annotated[float, POSITIVE]
BelowOne = Annotated[float, BELOW_ONE]
Share = Annotated[float, real("a number in [0, 1]", lambda v: 0 <= v <= 1)]
Seconds = Annotated[float, real("a number of seconds in [1, 10⁹]", lambda v: 1 <= v <= 1e9)]
Numbers = Annotated[tuple[float, ...], NUMBERS]


def kind_of(hint: Any) -> Kind:
    """Returns the kind that a type describes: that of an `Annotated` type, of bool, of None, or of a union of these."""
    if get_origin(hint) is Annotated:
        return next(part for part in hint.__metadata__ if isinstance(part, Kind))
    if get_origin(hint) in (Union, types.UnionType):
        first, *others = map(kind_of, get_args(hint))
        for other in others:
            first |= other
        return first
    return {bool: YES_NO, type(None): NONE}[hint]


def shown(value: object) -> str:
    """Returns the text of a value for an error message, on one line and truncated if it is long."""
    try:
        return one_line(repr(value), 80)
    except ValueError:  # Python does not convert integers of thousands of digits
        return "an integer with too many digits"
