"""safetensors are read to the letter of their format, and nothing else is.

goldens/tensors.safetensors was written by safetensors 0.8; goldens/tensors.npz holds the values.
"""

import json

import ml_dtypes
import numpy as np
import pytest
from weight_files import GOLDENS, safetensors, save_safetensors

from cfgjax.base.errors import UsageError
from cfgjax.base.weights import read_state_dict

GOLDEN = GOLDENS / "tensors.safetensors"
FOUR = np.arange(4, dtype="<f4")


def entry(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_every_tensor_is_as_it_was_saved():
    with np.load(GOLDENS / "tensors.npz") as file:
        expected = dict(file)
    found = read_state_dict(GOLDEN)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == (ml_dtypes.bfloat16 if key == "bfloat16" else value.dtype), key
        np.testing.assert_array_equal(found[key].astype(value.dtype), value, err_msg=key)


def test_tensors_come_in_the_order_of_the_header_wherever_they_lie(tmp_path):
    header = {"b": entry(offsets=(16, 32)), "a": entry()}
    (tmp_path / "x").write_bytes(safetensors(header, FOUR.tobytes() + (FOUR + 4).tobytes()))
    found = read_state_dict(tmp_path / "x")
    assert list(found) == ["b", "a"]
    assert found["b"].tolist() == [4, 5, 6, 7] and found["a"].tolist() == [0, 1, 2, 3]


def test_what_is_written_by_hand_is_read(tmp_path):
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "empty": np.zeros((0, 3), np.float32)}
    found = read_state_dict(save_safetensors(tmp_path / "x.safetensors", arrays))
    assert all(np.array_equal(found[key], value) and found[key].shape == value.shape for key, value in arrays.items())


def test_a_file_cut_anywhere_is_told_in_one_line(tmp_path):
    content = GOLDEN.read_bytes()
    for size in [*range(0, len(content) - 1, 29), len(content) - 1]:
        (tmp_path / "cut").write_bytes(content[:size])
        with pytest.raises(UsageError, match=r"\A[^\n]*cut[^\n]*\Z"):
            read_state_dict(tmp_path / "cut")


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ({"x": entry(offsets=(0, 12), shape=(3,))}, "16 bytes of arrays, of which 12 are used"),
        ({"x": entry(offsets=(4, 16), shape=(3,))}, "x lies at 4 … 16 of 16 bytes, not from 0 on"),
        ({"x": entry(), "y": entry()}, "y lies at 0 … 16 of 16 bytes, not from 16 on"),
        ({"x": entry(offsets=(0, 20), shape=(5,))}, "x lies at 0 … 20 of 16 bytes"),
        ({"x": entry(shape=(5,))}, r"x of shape \(5,\) has 16 bytes"),
        ({"x": entry(shape=(-4,))}, r"x of shape \(-4,\) has 16 bytes"),
        ({"x": entry(shape=(2.0, 2))}, r"x of shape \(2.0, 2\) has 16 bytes"),
        ({"x": entry(dtype="F8_E4M3", shape=(16,))}, "holds x as F8_E4M3, which is not read"),
        ({"x": entry(shape=(10**13,))}, r"x of shape \(10000000000000,\) has 16 bytes"),
        ({"x": entry(shape=(10**13,), offsets=(0, 4 * 10**13))}, "x lies at 0 … 40000000000000 of 16 bytes"),
        ({"x": entry(shape=(0, 10**30), offsets=(0, 0))}, "x of shape"),
        ({"x": entry(offsets=(-16, 0))}, "data_offsets of x in its header are"),
        ({"x": entry(offsets=(0, 10**30))}, "data_offsets of x in its header are"),
        ({"x": entry(offsets=(0.0, 16))}, "data_offsets of x in its header are"),
        ({"x": entry(offsets=(0, 8, 16))}, "data_offsets of x in its header are"),
        ({"x": entry(), "y": entry(offsets=(8, 24))}, "y lies at 8 … 24 of 16 bytes, not from 16 on"),
        ({"x": entry() | {"dtype": ["F32"]}}, "'dtype' of x in its header is a list"),
        ({"x": entry() | {"shape": 4}}, "'shape' of x in its header is an integer"),
        ({"x": {"dtype": "F32"}}, "cannot read .*lacks the key 'shape' of x in its header"),
        ({"x": []}, "cannot read"),
        (b"[" * 10**5, "neither"),
        (b'{"x": ' + b"[" * 10**5, "cannot read"),
        (b"{" + b'"x": %s, ' % json.dumps(entry()).encode() * 2 + b"}", "cannot read"),
        (b'{"x": 1, "x": 2}', "the key 'x' is repeated"),
        (b"{]", "cannot read"),
    ],
)
def test_a_header_that_does_not_fit_is_told(header, told, tmp_path):
    (tmp_path / "x").write_bytes(safetensors(header, FOUR.tobytes()))
    with pytest.raises(UsageError, match=told):
        read_state_dict(tmp_path / "x")
