"""Unwraps state dicts from the dicts ({"model": …, "ema": …}) and key prefixes (`module.`) that trainers add."""

import math
import re
from typing import Any

PLAIN = ("state_dict", "model_state_dict", "model", "module", "net", "network", "unet", "online_model", "_orig_mod")
EMA = re.compile(r"(?:.*_)?ema(?:_.*)?")
MAX_WRAPPERS = 8

Unwrapped = tuple[Any, tuple[str, ...], tuple[str, ...]]  # as `unwrap` returns it


def unwrap(value: Any) -> Unwrapped:
    """Returns (innermost state dict, names of the dicts around it, names of other state dicts).

    value: content of a file, {name: array or any object with a shape} or nested dicts of them. A prefix of all keys
    counts as a dict of that name. Averaged weights (EMA) are preferred.
    """
    return _unwrap(value, 0) or (value, (), ())


def _unwrap(value: Any, depth: int) -> Unwrapped | None:
    """Returns the same as `unwrap`, or None if there is no array."""
    if not isinstance(value, dict) or depth > MAX_WRAPPERS:
        return None
    parts = inner_dicts(value)
    found = [(name, inner) for name in parts if (inner := _unwrap(parts[name], depth + 1)) is not None]
    if not found:
        return (value, (), ()) if any(map(is_array, value.values())) else None
    name, (state_dict, path, passed) = found[0]
    return state_dict, (name, *path), (*(other for other, _ in found[1:]), *passed)


def inner_dicts(value: dict[Any, Any]) -> dict[str, dict[Any, Any]]:
    """Returns {name: dict} of possible state dicts in value, in order of preference."""
    names = [name for name, inner in value.items() if isinstance(name, str) and isinstance(inner, dict)]
    known = [name for name in names if is_ema(name) or name in PLAIN]
    if not known and len(names) == 1 and not any(map(is_array, value.values())):
        known = names  # such as {"ema": {"0.999": …}}
    return {name: value[name] for name in sorted(known, key=rank)} or by_prefix(value)


def by_prefix(value: dict[Any, Any]) -> dict[str, dict[Any, Any]]:
    """Splits a state dict into {prefix: dict}. Returns {} if an array other than a counter has no prefix.

    A prefix is either a known name, or common to all keys and followed by the names of several modules.
    """
    names = [key.split(".") for key in value if isinstance(key, str)]
    is_shared = len({name[0] for name in names}) == 1 and len({name[1] for name in names if len(name) > 2}) > 1
    parts: dict[str, dict[Any, Any]] = {}
    for key, array in value.items():
        prefix, dot, rest = key.partition(".") if isinstance(key, str) else ("", "", "")
        if dot and (is_shared or is_ema(prefix) or prefix in PLAIN):
            parts.setdefault(prefix, {})[rest] = array
        elif is_array(array) and math.prod(array.shape) > 1:
            return {}
    return dict(sorted(parts.items(), key=lambda item: rank(item[0])))


def rank(name: str) -> tuple[int, int]:
    """Returns a sort key: preferred names first."""
    return (0, 0) if is_ema(name) else (1, PLAIN.index(name) if name in PLAIN else len(PLAIN))


def is_ema(name: str) -> bool:
    """Returns whether a name denotes averaged weights."""
    return EMA.fullmatch(name.lower()) is not None


def is_array(value: object) -> bool:
    """Returns whether value has a shape that is a tuple of integers."""
    shape = getattr(value, "shape", None)
    return isinstance(shape, tuple) and all(type(n) is int for n in shape)
