"""The reader of JSON files returns a value of the requested form or raises an error of one line."""

import json
import math
import os

import pytest

from cfgjax.base.errors import UsageError
from cfgjax.base.json_files import read_json, write_json

KEYS = {"count": int, "rate": float, "name": (str, type(None))}
GOOD = {"count": 3, "rate": 2, "name": None}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"{", "not JSON"),
        (b"{}{}", "not JSON"),
        (b"\x00" * 40, "not JSON"),
        (b'{"count": 3\xff}', "byte 11 is not UTF-8"),
        (b"[]", "is a list, not an object"),
        (b"null", "is null, not an object"),
        (b"3", "is an integer, not an object"),
        (b"{}", "lacks the key 'count'"),
        (b"[" * 100_000, "nested"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested"),
        (b'{"count": 1, "count": 2}', "'count' is repeated"),
        (json.dumps(GOOD | {"count": True}).encode(), "'count' is a boolean, not an integer"),
        (json.dumps(GOOD | {"rate": "2"}).encode(), "'rate' is a string, not a number"),
        (json.dumps(GOOD | {"name": []}).encode(), "'name' is a list, not a string or null"),
        (b'{"count": ' + b"9" * 5000 + b"}", "damaged"),
    ],
)
def test_damage_is_a_one_line_error(tmp_path, content, told):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(UsageError) as e:
        read_json(path, keys=KEYS, remedy="delete it")
    assert told in str(e.value)
    assert str(path) in str(e.value)
    assert str(e.value).endswith("; delete it")
    assert "\n" not in str(e.value)


def test_values_of_overrides_are_read_unchanged(tmp_path):
    value = GOOD | {"file": os.fsdecode(b"caf\xe9.png"), "none": math.inf}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json", keys=KEYS) == value


def test_a_hash_detects_every_changed_character(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, GOOD, hashed=True)
    assert read_json(path, keys=KEYS, hashed=True) == GOOD
    text = path.read_text()
    for i, character in enumerate(text):
        if character.isdigit():
            path.write_text(text[:i] + str((int(character) + 1) % 10) + text[i + 1 :])
            with pytest.raises(UsageError, match="hash"):
                read_json(path, hashed=True)
    write_json(path, GOOD)
    with pytest.raises(UsageError, match="no hash"):
        read_json(path, hashed=True)


def test_a_missing_file_raises_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, "a\0b", tmp_path / "fifo", "/dev/zero"):
        with pytest.raises(UsageError, match="cannot read"):
            read_json(path)
