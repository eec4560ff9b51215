"""experiments/base.py is the reference of the configuration, and experiments start from it in any folder."""

import ast
import re
import shutil

import ml_collections
import pytest
from tiny import CONFIGS, EXPERIMENTS, same_config

from cfgjax.base.errors import UsageError
from cfgjax.base.python_files import load_module
from cfgjax.runs.config import flatten, load_file
from cfgjax.runs.settings import KIND_OF_KEY, Settings

BASE = EXPERIMENTS / "base.py"
MODULE = load_module(BASE, "config file")


def reference_values():
    """{key: node} of the dicts that `reference` returns, by flat key."""
    functions = [node for node in ast.parse(BASE.read_text()).body if getattr(node, "name", "") == "reference"]
    (value,) = [node.value for node in functions[0].body if isinstance(node, ast.Return)]
    found = {}
    for section in value.keywords:
        is_section = isinstance(section.value, ast.Call) and section.value.func.id == "dict"
        for key in section.value.keywords if is_section else [section]:
            found[f"{section.arg}.{key.arg}" if is_section else key.arg] = key
    return found


def test_the_reference_has_every_key_once_with_a_value_of_its_kind():
    values = flatten(ml_collections.ConfigDict(MODULE.reference()))
    assert values.keys() == reference_values().keys() == KIND_OF_KEY.keys()
    for key, value in values.items():
        nullable = KIND_OF_KEY[key].admits(None)
        assert KIND_OF_KEY[key].admits(value) or (value is None and nullable), key


@pytest.mark.parametrize("key", KIND_OF_KEY)
def test_every_key_has_a_comment(key):
    line = BASE.read_text().splitlines()[reference_values()[key].end_lineno - 1]
    assert re.search(r",  # \S+", line), line


@pytest.mark.parametrize("source", MODULE.SOURCES)
@pytest.mark.parametrize("network", MODULE.NETWORKS)
def test_every_kind_of_run_has_its_sections_and_admitted_values(source, network):
    makers = {"unet": MODULE.denoiser, "mlp": MODULE.denoiser, "convnet": MODULE.classifier}
    config = makers.get(network, MODULE.noisy_classifier)(data=dict(source=source), model=dict(name=network))
    assert Settings.from_config(config).given == config.to_dict()


def test_a_key_absent_by_default_is_added_when_given():
    assert "random_crop" not in MODULE.denoiser().data
    assert MODULE.denoiser(data=dict(random_crop=0.5)).data.random_crop == 0.5


def test_configs_share_no_values():
    first, second = MODULE.denoiser(), MODULE.denoiser()
    first.model.head_channels = None
    assert second.model.head_channels is not None


@pytest.mark.parametrize("name", ["digits", "digits_classifier", "adm:64"])
def test_an_experiment_is_the_same_in_any_folder_with_a_copy_of_base(name, tmp_path, monkeypatch):
    stem, colon, argument = name.partition(":")
    for file in (BASE, EXPERIMENTS / f"{stem}.py"):
        shutil.copy(file, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    for folder, path in {"elsewhere": f"../{stem}.py", ".": f"{stem}.py", "..": f"{tmp_path}/{stem}.py"}.items():
        monkeypatch.chdir(tmp_path / folder)
        assert same_config(load_file(f"{path}{colon}{argument}"), load_file(CONFIGS[name]))
    assert {path.name for path in tmp_path.iterdir()} == {"base.py", f"{stem}.py", "elsewhere"}


def test_files_import_the_current_files_of_their_own_folder(tmp_path):
    text = "from .base import SEED\nfrom ml_collections import ConfigDict\n"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(f"{text}def get_config():\n    return ConfigDict({{'seed': SEED}})\n")
        (tmp_path / name / "base.py").write_text(f"SEED = {ord(name)}\n")
    seeds = lambda: [load_file(tmp_path / name / "mine.py").seed for name in ("a", "b")]
    assert seeds() == [97, 98]
    (tmp_path / "a" / "base.py").write_text("SEED = 31\n")
    assert seeds() == [31, 98]


def test_a_file_in_the_same_folder_may_be_imported_inside_the_function(tmp_path):
    (tmp_path / "base.py").write_text("from ml_collections import ConfigDict\n")
    (tmp_path / "my.exp-1.py").write_text("def get_config():\n    from . import base\n    return base.ConfigDict()\n")
    assert not load_file(tmp_path / "my.exp-1.py")


@pytest.mark.parametrize(
    ("base", "text"),
    [
        (None, "line 1: ModuleNotFoundError: No module named '.base'"),
        ("x = 1\n", "line 1: ImportError: cannot import name 'denoiser'"),
        ("\n\nx = (\n", "line 1: base.py, line 3: SyntaxError"),
        ("\n1 / 0\n", "line 1: base.py, line 2: ZeroDivisionError"),
        ("def denoiser():\n    raise KeyError('a')\n", "line 5: base.py, line 2: get_config(): KeyError: 'a'"),
    ],
)
def test_a_failing_import_from_the_same_folder_is_reported_on_one_line(tmp_path, base, text):
    path = tmp_path / "mine.py"
    path.write_text("from .base import denoiser\n\n\ndef get_config():\n    return denoiser()\n")
    if base is not None:
        (tmp_path / "base.py").write_text(base)
    with pytest.raises(UsageError) as e:
        load_file(path)
    assert f"config file {path}, {text}" in str(e.value)
    assert "cfgjax_files" not in str(e.value)
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ("model=dict(chanels=3)", ["chanels", "channels"]),
        ("data=dict(source='digts')", ["'digts'", "'digits'"]),
        ("model=dict(name='unett')", ["'unett'", "'unet'"]),
        ("optimiser=dict()", ["optimiser", "optimizer"]),
        ("model=3", ["model"]),
        ("data=dict(num_classes='ten')", ["num_classes"]),
    ],
)
def test_a_wrong_name_or_type_in_an_experiment_is_named_on_one_line(tmp_path, given, texts):
    shutil.copy(BASE, tmp_path)
    path = tmp_path / "mine.py"
    path.write_text(f"from .base import denoiser\n\n\ndef get_config():\n    return denoiser({given})\n")
    with pytest.raises(UsageError) as e:
        load_file(path)
    assert f"{path}, line 5: base.py, line " in str(e.value)
    assert all(text in str(e.value) for text in texts), str(e.value)
    assert len(str(e.value).splitlines()) == 1
