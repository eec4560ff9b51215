"""Files are complete or absent; arrays are read as written, or refused before memory is allocated."""

import errno
import hashlib
import io
import os
import stat
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from cfgjax.base.errors import UsageError
from cfgjax.base.files import read_npy, read_npz, sha256, writing
from cfgjax.base.folders import writing_folder
from cfgjax.base.weights import read_state_dict


def test_the_hash_equals_that_of_the_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc" * 1_000_000)
    assert sha256(tmp_path / "file") == hashlib.sha256(b"abc" * 1_000_000).hexdigest()


def test_a_written_file_replaces_the_old_one(tmp_path):
    (tmp_path / "file").write_text("old")
    with writing(tmp_path / "file") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "file").read_text() == "old"
    assert (tmp_path / "file").read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_only_the_files_that_existed_before(tmp_path, error):
    def write():
        with writing(tmp_path / "file") as temporary:
            temporary.write_text("half of the ne")
            raise error

    (tmp_path / "file").write_text("old")
    with pytest.raises(error):
        write()
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("write", [writing, writing_folder])
def test_a_full_disk_is_reported_with_the_path(write, tmp_path):
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/new'"), write(tmp_path / "new"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), writing(tmp_path / "file"):
        pass


def test_temporary_files_have_the_same_ending(tmp_path):
    with writing(tmp_path / "file.npz") as temporary:
        np.savez(temporary, x=np.ones(2))
    assert os.listdir(tmp_path) == ["file.npz"]


def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "other").touch()
    with writing(tmp_path / "file") as temporary:
        temporary.touch()
    file, other = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "other"))
    assert file == other


ARRAYS = {
    "image": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big-endian": np.arange(3, dtype=">f4"),
    "scalar": np.array(7),
    "empty": np.zeros((0, 5), np.int32),
    "names": np.array(["ant", "bee"]),
    "truth": np.array([True, False]),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_exactly(save, tmp_path):
    save(tmp_path / "a.npz", **ARRAYS)
    found = read_npz(tmp_path / "a.npz")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
        np.save(tmp_path / "a.npy", array)
        assert np.array_equal(read_npy(tmp_path / "a.npy"), array)


def npy(shape, dtype="|u1", content=b""):
    """An .npy that declares a shape, with any content."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header = header.ljust(-(-(len(header) + 11) // 64) * 64 - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def archive(*entries, method=zipfile.ZIP_STORED):
    """A zip of (name, content)."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as opened:
        for name, content in entries:
            opened.writestr(name, content)
    return file.getvalue()


def declared(data, size, fields=("central", "local")):
    """A zip of one entry whose headers declare another uncompressed size."""
    data = bytearray(data)
    if "local" in fields:
        struct.pack_into("<I", data, 22, size)
    if "central" in fields:
        struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, size)
    return bytes(data)


def of_64_bits():
    """A zip whose entry declares 4 EiB in the fields of zip64."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("a.npy", npy((2**62 - 128,), content=bytes(4000)))
        opened.filelist[0].file_size = 2**62
    return file.getvalue()


def overlapping():
    """A zip of two entries that share their bytes."""
    data = bytearray(archive(("a.npy", npy((4,), content=bytes(4))), ("b.npy", npy((4,), content=bytes(4)))))
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)
    struct.pack_into("<I", data, second + 42, 0)
    return bytes(data)


def bomb():
    """A zip of 272 MiB of zeros."""
    file = io.BytesIO()
    opened = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with opened, opened.open("arr_0.npy", "w") as entry:
        entry.write(npy((17 * 2**24,)))
        for _ in range(17):
            entry.write(bytes(2**24))
    return file.getvalue()


WHOLE = archive(("a.npy", npy((4000,), content=bytes(4000))), method=zipfile.ZIP_DEFLATED)
LYING = {
    "images without end": archive(("image.npy", npy((10**13, 8, 8, 3)))),
    "more items than bytes": archive(("a.npy", npy((5,), content=bytes(4)))),
    "fewer items than bytes": archive(("a.npy", npy((3,), content=bytes(4)))),
    "a negative shape": archive(("a.npy", npy((-4,), content=bytes(4)))),
    "items without bytes": archive(("a.npy", npy((10**13,), "|S0"))),
    "objects": archive(("a.npy", npy((1,), "|O", b"\x80\x04N."))),
    "a deep header": archive(("a.npy", npy("(" * 5000 + ")" * 5000))),
    "a header that is no dict": archive(("a.npy", b"\x93NUMPY\x01\x00\x04\x00[1]\n")),
    "a header that ends": archive(("a.npy", npy((4,))[:20])),
    "a later version": archive(("a.npy", b"\x93NUMPY\x09\x00" + bytes(60))),
    "not an array": archive(("a.txt", b"text")),
    "two of one name": archive(("a.npy", npy((1,), content=b"a")), ("a.npx", npy((1,), content=b"b"))).replace(
        b"a.npx", b"a.npy"
    ),
    "entries that overlap": overlapping(),
    "a size above what deflate can give": declared(WHOLE, 2**31),
    "a size of 64 bits": of_64_bits(),
    "a larger size": declared(WHOLE, 4200),
    "a smaller size": declared(WHOLE, 130),
    "a size in a header alone": declared(archive(("a.npy", npy((4,), content=bytes(4)))), 2**30, ("central",)),
    "a bomb": bomb(),
    "a truncated archive": WHOLE[:-30],
    "a damaged entry": WHOLE.replace(WHOLE[60:70], b"\xff" * 10),
    "no Unicode": archive(("a.npy", npy((1,), "<U1", b"\xff\xff\xff\x7f"))),
    "no archive": b"hello",
    "nothing": b"",
}


@pytest.mark.parametrize("read", [read_npz, read_state_dict])
@pytest.mark.parametrize("name", LYING)
def test_an_archive_with_false_sizes_is_refused_before_memory_is_allocated(name, read, tmp_path):
    (tmp_path / "a.npz").write_bytes(LYING[name])
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match=r"a\.npz") as raised:
            read(tmp_path / "a.npz")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("content", [npy((10**13,)), npy((5,), content=bytes(4)), npy((4,))[:9], b"", b"PK\x03\x04"])
def test_an_array_file_with_a_false_header_is_refused(content, tmp_path):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UsageError, match=r"cannot read .*a\.npy"):
        read_npy(tmp_path / "a.npy")


def test_arrays_larger_than_the_memory_are_refused(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", image=np.zeros(2**20, np.uint8))
    monkeypatch.setattr("cfgjax.base.files.available_memory", lambda: 2**19)
    with pytest.raises(UsageError, match="GiB of memory"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_only_regular_files_are_accepted(make, tmp_path):
    make(tmp_path / "a.npz")
    with pytest.raises(UsageError, match="cannot read"):
        read_npz(tmp_path / "a.npz")
