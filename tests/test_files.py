"""Files are whole or absent."""

import hashlib
import os
import stat

import numpy as np
import pytest

from cfgjax.files import sha256, writing


def test_the_hash_is_that_of_the_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc" * 1_000_000)
    assert sha256(tmp_path / "file") == hashlib.sha256(b"abc" * 1_000_000).hexdigest()


def test_what_was_written_takes_the_place_of_what_was_there(tmp_path):
    (tmp_path / "file").write_text("old")
    with writing(tmp_path / "file") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "file").read_text() == "old"
    assert (tmp_path / "file").read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path, error):
    def write():
        with writing(tmp_path / "file") as temporary:
            temporary.write_text("half of the ne")
            raise error

    (tmp_path / "file").write_text("old")
    with pytest.raises(error):
        write()
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), writing(tmp_path / "file"):
        pass


def test_the_ending_is_kept_for_writers_that_add_their_own(tmp_path):
    with writing(tmp_path / "file.npz") as temporary:
        np.savez(temporary, x=np.ones(2))
    assert os.listdir(tmp_path) == ["file.npz"]


def test_the_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "other").touch()
    with writing(tmp_path / "file") as temporary:
        temporary.touch()
    file, other = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "other"))
    assert file == other
