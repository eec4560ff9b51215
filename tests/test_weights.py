"""State dicts come out of files as PyTorch put them in, and nothing else does.

goldens/tensors_*.pth were saved by PyTorch 2.13 in its two formats, with views and shared storages; goldens/tensors.npz
holds the values.
"""

import os
import pathlib
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from cfgjax.base.errors import UsageError
from cfgjax.base.weights import LEGACY_MAGIC, LEGACY_PROTOCOL, read_state_dict

GOLDENS = pathlib.Path(__file__).parent / "goldens"
FORMATS = ["tensors_zip.pth", "tensors_legacy.pth"]


@pytest.mark.parametrize("name", [*FORMATS, "tensors.npz"])
def test_every_tensor_equals_the_saved_one(name):
    with np.load(GOLDENS / "tensors.npz") as file:
        expected = dict(file)
    found = read_state_dict(GOLDENS / name)
    assert list(found) == list(expected)
    for key, value in expected.items():
        stored = ml_dtypes.bfloat16 if key == "bfloat16" and name != "tensors.npz" else value.dtype
        assert (found[key].dtype, found[key].shape) == (stored, value.shape), key
        np.testing.assert_array_equal(found[key].astype(value.dtype), value, err_msg=key)


@pytest.mark.parametrize("name", [*FORMATS, "tensors.npz"])
def test_the_format_is_recognised_by_the_content_not_the_name(name, tmp_path):
    (tmp_path / "weights").write_bytes((GOLDENS / name).read_bytes())
    assert read_state_dict(tmp_path / "weights").keys() == read_state_dict(GOLDENS / name).keys()


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_truncated_anywhere_is_reported_on_one_line(name, tmp_path):
    content = (GOLDENS / name).read_bytes()
    for size in [*range(0, len(content) - 1, 29), len(content) - 1]:
        (tmp_path / name).write_bytes(content[:size])
        with pytest.raises(UsageError, match=rf"\A[^\n]*{name}[^\n]*\Z"):
            read_state_dict(tmp_path / name)


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_byte_only_raises_a_one_line_error(name, tmp_path):
    content = (GOLDENS / name).read_bytes()
    told = []
    for i in range(0, len(content), 7):
        (tmp_path / name).write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
        try:
            read_state_dict(tmp_path / name)
        except UsageError as e:
            told.append(str(e))
    assert len(told) > 50
    assert all(name in line and "\n" not in line for line in told)


# Pickles by hand, since PyTorch writes no bad ones.


def piece(value):
    """The opcodes that put a plain value on a pickle's stack."""
    return pickle.dumps(value, 2)[2:-1]


def storage(numel, kind=b"FloatStorage", module=b"torch"):
    return b"(" + piece("storage") + b"c%s\n%s\n" % (module, kind) + piece("0") + piece("cpu") + piece(numel) + b"tQ"


def tensor(offset, shape, strides, of):
    arguments = of + piece(offset) + piece(shape) + piece(strides) + piece(False) + piece({})
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def dict_of(**values):
    """A pickled dict of values given as opcodes."""
    return b"\x80\x02}" + b"".join(piece(key) + value + b"s" for key, value in values.items()) + b"."


def save_zip(path, pickled, data=b""):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", data)
    return path


def save_legacy(path, pickled, data=b""):
    head = b"".join(pickle.dumps(v, 2) for v in (LEGACY_MAGIC, LEGACY_PROTOCOL, {"little_endian": True}))
    path.write_bytes(head + pickled + pickle.dumps(["0"], 2) + struct.pack("<q", len(data) // 4) + data)
    return path


SAVERS = pytest.mark.parametrize("save", [save_zip, save_legacy])
FOUR = np.arange(4, dtype="<f4")


@SAVERS
def test_a_view_of_part_of_a_storage_is_read(save, tmp_path):
    pickled = dict_of(x=tensor(1, (2, 2), (1, 1), storage(4)))
    assert read_state_dict(save(tmp_path / "x.pth", pickled, FOUR.tobytes()))["x"].tolist() == [[1, 2], [2, 3]]


@SAVERS
def test_a_nested_state_dict_is_used_in_place_of_the_file(save, tmp_path):
    inner = dict_of(x=tensor(0, (4,), (1,), storage(4)))[2:-1]
    path = save(tmp_path / "x.pth", dict_of(epoch=piece(3), state_dict=inner), FOUR.tobytes())
    assert read_state_dict(path)["x"].tolist() == FOUR.tolist()


@SAVERS
@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (5,), (1,)),
        (4, (1,), (1,)),
        (4, (), ()),
        (0, (2, 2), (3, 1)),
        (-1, (2,), (1,)),
        (3, (2, 2), (-1, 1)),
        (0, (-2,), (1,)),
        (0, (2,), (2**62,)),
        (0, (2,), (2**70,)),
        (2**64, (2,), (1,)),
        (0, (2,), (1, 1)),
        (0, [2], (1,)),
        (0, (2.0,), (1,)),
    ],
)
def test_a_view_outside_its_storage_is_refused(save, offset, shape, strides, tmp_path):
    path = save(tmp_path / "x.pth", dict_of(x=tensor(offset, shape, strides, storage(4))), FOUR.tobytes())
    with pytest.raises(UsageError, match="tensor x reaches outside its storage"):
        read_state_dict(path)


@SAVERS
def test_a_storage_that_declares_more_than_the_file_has_is_refused(save, tmp_path):
    path = save(tmp_path / "x.pth", dict_of(x=tensor(0, (5,), (1,), storage(5))), FOUR.tobytes())
    with pytest.raises(UsageError, match="damaged: storage 0"):
        read_state_dict(path)


@SAVERS
@pytest.mark.parametrize(("shape", "strides"), [((10**13,), (0,)), ((2**20, 2**20), (0, 1)), ((2**40, 4), (0, 1))])
def test_a_tensor_larger_than_its_storage_is_refused(save, shape, strides, tmp_path):
    path = save(tmp_path / "x.pth", dict_of(x=tensor(0, shape, strides, storage(4))), FOUR.tobytes())
    with pytest.raises(UsageError, match=r"\A[^\n]*tensor x reaches outside its storage\Z"):
        read_state_dict(path)


def test_an_archive_whose_parts_are_compressed_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", dict_of(x=tensor(0, (2**18,), (1,), storage(2**18))))
        archive.writestr("archive/data/0", bytes(2**20))
    with pytest.raises(UsageError, match="is compressed; PyTorch's files never are"):
        read_state_dict(tmp_path / "x.pth")


def test_an_archive_that_declares_more_than_it_has_is_refused(tmp_path):
    path = save_zip(tmp_path / "x.pth", dict_of(x=tensor(0, (4,), (1,), storage(2**30))), FOUR.tobytes())
    content = path.read_bytes()
    sizes = struct.pack("<II", 16, 16)
    assert content.count(sizes) == 2  # in front of the part, and in the directory at the end
    path.write_bytes(content.replace(sizes, struct.pack("<II", 2**32 - 16, 2**32 - 16)))
    with pytest.raises(UsageError, match=r"\A[^\n]*x\.pth is damaged: its parts declare more than its[^\n]*\Z"):
        read_state_dict(path)


@SAVERS
def test_one_storage_of_two_sizes_is_refused(save, tmp_path):
    values = dict_of(x=tensor(0, (4,), (1,), storage(4)), y=tensor(0, (8,), (1,), storage(8)))
    with pytest.raises(UsageError, match="storage 0 has two sizes"):
        read_state_dict(save(tmp_path / "x.pth", values, FOUR.tobytes()))


@SAVERS
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_calls_a_function_is_refused_without_calling_it(save, protocol, tmp_path):
    class Call:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    path = save(tmp_path / "x.pth", pickle.dumps({"x": Call()}, protocol))
    with pytest.raises(UsageError, match=r"holds posix\.mkdir, which is not a tensor; refused"):
        read_state_dict(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("opcodes", "told"),
    [
        (b"cbuiltins\neval\n", r"builtins\.eval"),
        (b"ctorch.nn\nLinear\n", r"torch\.nn\.Linear"),
        (b"ctorch._utils\n_rebuild_tensor_v3\n", r"torch\._utils\._rebuild_tensor_v3"),
        (b"ctorch\nComplexFloatStorage\n", r"torch\.ComplexFloatStorage"),
        (b"cnumpy\ndtype\n", r"numpy\.dtype"),
        (b"ccollections\nnamedtuple\n", r"collections\.namedtuple"),
    ],
)
def test_a_global_that_builds_no_tensor_is_named(opcodes, told, tmp_path):
    with pytest.raises(UsageError, match=f"holds {told}, which is not a tensor; refused"):
        read_state_dict(save_zip(tmp_path / "x.pth", dict_of(x=opcodes)))


def test_a_pickle_cannot_change_how_the_next_file_is_read(tmp_path):
    """BUILD with a pair as its state sets the attributes of a function."""
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    attributes = piece((None, {"__kwdefaults__": {}, "__defaults__": (1, 2), "__name__": "changed"}))
    with pytest.raises(UsageError, match="holds 'x', a function"):
        read_state_dict(save_zip(tmp_path / "x.pth", dict_of(x=rebuild + attributes + b"b")))
    test_every_tensor_equals_the_saved_one(FORMATS[0])


@pytest.mark.parametrize(
    ("pickled", "told"),
    [
        (dict_of(x=piece(3)), "holds 'x', a int; need tensors by name"),
        (b"\x80\x02" + piece([1]) + b".", "holds a list, not a dict of tensors"),
        (dict_of(x=tensor(0, (2,), (1,), piece("storage"))), "a tensor of an unknown kind"),
    ],
)
def test_values_that_are_no_dict_of_tensors_are_reported(pickled, told, tmp_path):
    with pytest.raises(UsageError, match=told):
        read_state_dict(save_zip(tmp_path / "x.pth", pickled))


def test_big_endian_numbers_are_refused(tmp_path):
    save_zip(tmp_path / "x.pth", dict_of(x=tensor(0, (4,), (1,), storage(4))), FOUR.tobytes())
    with zipfile.ZipFile(tmp_path / "x.pth", "a") as archive:
        archive.writestr("archive/byteorder", "big")
    with pytest.raises(UsageError, match="big-endian"):
        read_state_dict(tmp_path / "x.pth")


def test_a_plain_pickle_is_not_read_as_a_pytorch_file(tmp_path):
    (tmp_path / "x.pth").write_bytes(pickle.dumps(1) * 3)
    with pytest.raises(UsageError, match="is a pickle, but not one of PyTorch's"):
        read_state_dict(tmp_path / "x.pth")


def test_objects_in_an_npz_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.array([{}], object))
    with pytest.raises(UsageError, match=r"cannot read .*x\.npz: Object arrays"):
        read_state_dict(tmp_path / "x.npz")


def test_an_archive_of_something_else_is_reported(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("readme.txt", "words")
    with pytest.raises(UsageError, match="its entry readme.txt is not an array"):
        read_state_dict(tmp_path / "x.npz")


def test_other_files_directories_and_missing_files_are_reported(tmp_path):
    (tmp_path / "words.pth").write_text("words")
    np.save(tmp_path / "array.npy", FOUR)
    for name, told in [
        ("words.pth", "not a PyTorch, .npz or safetensors file"),
        ("array.npy", "not a PyTorch, .npz or safetensors file"),
        ("none.pth", r"cannot read .*none\.pth: No such file or directory"),
        (".", "cannot read .*: Is a directory"),
    ]:
        with pytest.raises(UsageError, match=told):
            read_state_dict(tmp_path / name)
