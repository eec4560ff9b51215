"""The validating reader and the atomic writer of all JSON files, cfgjax's own and others."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cfgjax.base import storage
from cfgjax.base.errors import UsageError
from cfgjax.base.files import check_regular, writing
from cfgjax.base.storage import AnyPath

MAX_JSON_BYTES = 256 * 2**20
MAX_JSON_DEPTH = 64
HASH = "sha256"  # key of a hashed object: the hash of all its other keys
IF_PRESENT = "if present"  # value of `hashed`: older versions wrote these files without a hash

JsonTypes = type | tuple[type, ...]


def read_json(
    path: AnyPath,
    *,
    keys: Mapping[str, JsonTypes] | None = None,
    kind: JsonTypes = dict,
    hashed: bool | str = False,
    remedy: str = "",
) -> Any:
    """Returns the value in a JSON file.

    Args:
      path: the file.
      keys: {name: type or tuple of types} that an object must have. `float` admits integers; `int` excludes booleans.
      kind: type or tuple of types of the whole value.
      hashed: True if the file was written with `write_json(..., hashed=True)`: the hash is checked and removed.
        IF_PRESENT admits an object without a hash.
      remedy: advice appended to the error about a damaged file.

    Raises:
      FileNotFoundError: there is no such file.
      UsageError: one line with the file's name, for any other fault: unreadable, too large, not UTF-8, not JSON,
        nested too deeply, a repeated key, a wrong type, a missing key, a wrong hash.
    """
    advice = f"; {remedy}" if remedy else ""
    try:
        if storage.is_url(path):
            data = storage.place(path).read_bytes()
        else:
            check_regular(path)
            with open(path, "rb") as file:
                data = file.read(MAX_JSON_BYTES + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as e:  # ValueError: a NUL in the path
        refused = isinstance(e, PermissionError) or storage.is_url(path)  # the file may well be intact
        reason = getattr(e, "strerror", None) or e
        raise UsageError(f"cannot read {path}: {reason}{'' if refused else advice}") from e
    try:
        return parse_json(data, keys=keys, kind=kind, hashed=hashed)
    except ValueError as e:
        raise UsageError(f"{path} is damaged: {e}{advice}") from e


def parse_json(
    data: bytes, *, keys: Mapping[str, JsonTypes] | None = None, kind: JsonTypes = dict, hashed: bool | str = False
) -> Any:
    """Returns the value of JSON bytes, checked as `read_json` does. Raises ValueError with the reason."""
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"it is larger than {MAX_JSON_BYTES // 2**20} MiB")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_without_repeats)
    except UnicodeDecodeError as e:
        raise ValueError(f"byte {e.start} is not UTF-8") from e
    except json.JSONDecodeError as e:
        raise ValueError(f"it is not JSON: {e}" if data.strip() else "it is empty") from e
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} levels deep") from None
    check_depth(value)
    check_type("it", value, kind)
    check_keys(value, keys or {})
    if hashed and HASH in value:
        if value.pop(HASH) != content_hash(value):
            raise ValueError("its content does not match its hash")
    elif hashed is True:
        raise ValueError("it has no hash (older versions wrote none)")
    return value


def write_json(path: AnyPath, value: Any, *, hashed: bool = False, indent: int | None = 2) -> None:
    """Writes a value as JSON atomically. `hashed` adds the key "sha256", the hash of an object's other keys.

    Text that is not UTF-8 (surrogates, as in file names) is escaped and read back unchanged.
    """
    if hashed:
        value = {**value, HASH: content_hash(value)}
    text = json.dumps(value, indent=indent) + "\n"
    with writing(path) as new:
        new.write_text(text, encoding="utf-8")


def content_hash(value: Any) -> str:
    """Returns the hexadecimal SHA-256 of a JSON value. The order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def check_keys(value: Any, keys: Mapping[str, JsonTypes], of: str = "") -> None:
    """Raises ValueError unless an object has these keys, {name: type or types}. of: suffix of keys in the error."""
    for name, types in keys.items():
        if name not in value:
            raise ValueError(f"it lacks the key {name!r}{of}")
        check_type(f"its {name!r}{of}", value[name], types)


def check_type(what: str, value: object, types: JsonTypes) -> None:
    """Raises ValueError unless value has one of the types. `float` admits int; `int` and `float` exclude booleans."""
    types = types if isinstance(types, tuple) else (types,)
    admitted = types + ((int,) if float in types else ())
    if not isinstance(value, admitted) or (isinstance(value, bool) and bool not in types):
        names = " or ".join("null" if t is type(None) else JSON_NAMES.get(t, t.__name__) for t in types)
        raise ValueError(f"{what} is {JSON_NAMES.get(type(value), type(value).__name__)}, not {names}")


JSON_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


def check_depth(value: object, depth: int = 0) -> None:
    """Raises ValueError for lists and objects nested more than MAX_JSON_DEPTH levels deep."""
    if depth > MAX_JSON_DEPTH:
        raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} levels deep")
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            check_depth(inner, depth + 1)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a dict of pairs. Raises ValueError for a repeated key."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is repeated")
        found[key] = value
    return found
