"""Reads a section of a config as a frozen dataclass whose fields have their kinds in their types."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar, get_type_hints

from cfgjax.base.errors import UsageError, nearest
from cfgjax.runs.values import Kind, kind_of, shown

S = TypeVar("S")

OPTIONS = "options"  # the field of a section for the keys that its source or network takes


def kinds_of(section: type) -> dict[str, Kind]:
    """Returns {key: kind} of a section, including the options whose kinds it knows, its KINDS."""
    hints = get_type_hints(section, include_extras=True)
    own = {name: kind_of(hints[name]) for name in fields_of(section) if name != OPTIONS}
    return own | getattr(section, "KINDS", {})


def fields_of(section: type) -> dict[str, dataclasses.Field]:
    """Returns {name: field} of a section."""
    return {field.name: field for field in dataclasses.fields(section)}


def check_value(key: str, value: object, kind: Kind) -> None:
    """Raises UsageError unless the value of a key is of a kind."""
    if not kind.admits(value):
        raise UsageError(f"{key} is {shown(value)}; need {kind.text}")


def read_section(section: type[S], name: str, given: Mapping[str, Any]) -> S:
    """Returns the section called `name` with the values given, converted to the types of its fields.

    Keys that are no fields go unconverted into the field `options`, if there is one. Raises UsageError for unknown and
    missing keys, and for values that are not of their kinds.
    """
    kinds, fields = kinds_of(section), fields_of(section)
    own = [key for key in fields if key != OPTIONS]
    for key, value in given.items():
        if key in kinds:
            check_value(f"{name}.{key}", value, kinds[key])
    others = {key: value for key, value in given.items() if key not in own}
    if others and OPTIONS not in fields:
        raise UsageError(f"unknown config key '{name}.{next(iter(others))}'{nearest(next(iter(others)), own)}")
    missing = [key for key in own if key not in given and fields[key].default is dataclasses.MISSING]
    if missing:
        raise UsageError(f"config.{name} lacks {', '.join(missing)}")
    values: dict[str, Any] = {key: kinds[key].convert(given[key]) for key in own if key in given}
    if OPTIONS in fields:
        values[OPTIONS] = MappingProxyType(others)
    return section(**values)
