"""The experiments and sweeps that come with cfgjax are found by name, from any folder."""

import pytest

from cfgjax.base.errors import UsageError
from cfgjax.base.experiments import SWEEPS, experiments_folder, file_of, names
from cfgjax.jobs.sweep.entries import read_sweep
from cfgjax.runs.config import load_file, to_json

FOLDER = experiments_folder()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_name_is_the_file_in_the_folder():
    assert to_json(load_file("digits")) == to_json(load_file(FOLDER / "digits.py"))
    assert to_json(load_file("adm:64")) == to_json(load_file(f"{FOLDER / 'adm.py'}:64"))


def test_base_is_not_an_experiment():
    assert "digits" in names(FOLDER) and "base" not in names(FOLDER)


def test_a_file_of_the_working_folder_comes_first(tmp_path):
    (tmp_path / "digits").mkdir()
    assert file_of("digits", "config file", FOLDER) == "digits"
    (tmp_path / "mine.py").write_text("")
    assert file_of("mine.py", "config file", FOLDER) == "mine.py"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("digit", "there is no config file digit, did you mean 'digits'?"),
        ("experiments/digits.py", "there is no config file experiments/digits.py; that of cfgjax is named digits"),
        ("experiments/adm.py:64", "there is no config file experiments/adm.py; that of cfgjax is named adm:64"),
        ("none.py", "there is no config file none.py"),
        ("", "the path of the config file is empty"),
    ],
)
def test_what_is_not_there_is_a_one_line_error(text, told):
    with pytest.raises(UsageError) as raised:
        load_file(text)
    assert str(raised.value) == told


def test_a_sweep_and_its_base_have_names():
    entries = read_sweep("p_uncond", "runs/p")
    assert all("--config=digits" in entry.commands[0] for entry in entries)
    with pytest.raises(UsageError, match="there is no sweep file p_uncon, did you mean 'p_uncond'?"):
        file_of("p_uncon", "sweep file", FOLDER / SWEEPS)
