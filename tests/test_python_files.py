"""Config and sweep files that fail, in any way that Python can: one line with the file, the line and the cause."""

import pytest
from tiny import EXPERIMENTS

from cfgjax.base.errors import UsageError
from cfgjax.cli import main as cli
from cfgjax.jobs.sweep.entries import read_sweep
from cfgjax.runs.config import load_file

READERS = {
    "get_config": load_file,
    "get_sweep": lambda path: read_sweep(path, "out", base="b.py"),
}
AT_IMPORT = {  # text: (line, cause)
    "x = 1\ndef f(:\n    pass\n": (2, "SyntaxError"),
    "x = 1\n  y = 2\n": (2, "IndentationError"),
    "x = '''\n": (1, "SyntaxError"),
    "\nimport no_such_module_at_all\n": (2, "no_such_module_at_all"),
    "from cfgjax import no_such_name\n": (1, "no_such_name"),
    "\n\nraise ValueError('two\\nlines')\n": (3, "ValueError: two lines"),
    "import sys\nsys.exit(0)\n": (2, "sys.exit(0)"),
    "import sys\nsys.exit()\n": (2, "sys.exit()"),
    "import sys\nsys.exit('bye')\n": (2, "sys.exit('bye')"),
    "raise SystemExit\n": (1, "sys.exit()"),
    "raise GeneratorExit\n": (1, "GeneratorExit"),
    "raise BaseException('x')\n": (1, "BaseException: x"),
    "def f():\n    return f()\nf()\n": (2, "RecursionError"),
    "1 / 0\n": (1, "ZeroDivisionError"),
    "class E(Exception):\n    def __str__(self):\n        raise ValueError\nraise E\n": (4, "E"),
    "class E(Exception):\n    def __str__(self):\n        raise SystemExit(0)\nraise E\n": (4, "E"),
    "raise SyntaxError\n": (1, "SyntaxError"),
    "raise ValueError('x' * 10000)\n": (1, "ValueError: xxx"),
    "raise ValueError('\\x1b[2Ja\\0b\\udcff')\n": (1, r"ValueError: \x1b[2Ja\x00b\udcff"),
    '{"seed": true}\n': (1, "NameError"),
    "open('/no/such/file')\n": (1, "FileNotFoundError"),
    "assert False\n": (1, "AssertionError"),
    "x = " + "(" * 500 + ")" * 500: (None, ""),
}
IN_CALL = {  # body of the function: cause
    "raise KeyError('a')": "KeyError: 'a'",
    "import sys; sys.exit(0)": "sys.exit(0)",
    "return get_config() if 'get_config' in globals() else get_sweep()": "RecursionError",
    "import no_such_module_at_all": "no_such_module_at_all",
    "raise StopIteration": "StopIteration",
    "raise GeneratorExit": "GeneratorExit",
}


def error_of(function, path):
    with pytest.raises(UsageError) as e:
        function(path)
    text = str(e.value)
    assert str(path) in text
    assert len(text.splitlines()) == 1
    assert len(text) < 600
    return text


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("text", AT_IMPORT, ids=range(len(AT_IMPORT)))
def test_a_file_that_cannot_be_loaded_is_reported_on_one_line_with_the_line_number(tmp_path, name, text):
    path, (line, cause) = tmp_path / "mine.py", AT_IMPORT[text]
    path.write_text(text)
    told = error_of(READERS[name], path)
    assert cause in told
    assert line is None or f"line {line}: " in told


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("body", IN_CALL)
def test_a_function_that_fails_is_reported_on_one_line_with_the_line_number(tmp_path, name, body):
    path = tmp_path / "mine.py"
    path.write_text(f"\n\ndef {name}():\n    {body}\n")
    told = error_of(READERS[name], path)
    assert IN_CALL[body] in told
    assert "line 4: " in told


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"# \xe9\n", b"x = 1\0", b"\0" * 50, b"", b"# -*- coding: nothing -*-"]
)
def test_a_file_without_python_or_the_function_is_reported_on_one_line(tmp_path, name, content):
    path = tmp_path / "mine.py"
    path.write_bytes(content)
    error_of(READERS[name], path)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("ending", ["", ".json", ".txt", ".pyc", ".yaml", ".PY"])
def test_an_unsupported_ending_is_refused(tmp_path, name, ending):
    path = tmp_path / f"mine{ending}"
    path.write_text(f"def {name}():\n    return []\n")
    assert "the ending must be .py" in error_of(READERS[name], path)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--config.data=None", "--config.data is a section"),
        ("--config.data=3", "--config.data is a section"),
        ("--config.model.=3", "unknown config key 'model.'"),
        ("--config=none.py", "none.py"),
        ("--config=", "--config"),
        ("--flagfile=none.txt", "none.txt"),
    ],
)
def test_overrides_without_a_config_are_a_one_line_error(words, told):
    with pytest.raises(UsageError) as e:
        cli.run_command(["preflight", f"--config={EXPERIMENTS}/mixture.py", "--devices=1", words])
    assert told in str(e.value)
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize("name", READERS)
def test_folders_and_missing_files_are_refused(tmp_path, name):
    (tmp_path / "folder.py").mkdir()
    assert "folder" in error_of(READERS[name], tmp_path / "folder.py")
    assert "there is no" in error_of(READERS[name], tmp_path / "none.py")


@pytest.mark.parametrize("value", ["None", "{}", "3", "'text'", "[]", "dict(seed=1)", "object()", "int"])
def test_a_config_of_another_type_is_refused(tmp_path, value):
    path = tmp_path / "mine.py"
    path.write_text(f"def get_config():\n    return {value}\n")
    assert "not a ConfigDict" in error_of(load_file, path)


@pytest.mark.parametrize(
    "text",
    [
        "get_config = 3",
        "def get_config(size):\n    return size",
        "from ml_collections import ConfigDict\ndef get_config():\n    c = ConfigDict()\n    c.c = c\n    return c",
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'f': get_config})",
        "from ml_collections import *\ndef get_config():\n"
        "    return ConfigDict({'a': config_dict.required_placeholder(int)})",
    ],
)
def test_a_config_that_cannot_be_built_or_written_is_refused(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text)
    error_of(load_file, path)


@pytest.mark.parametrize(
    "value", ["None", "3", "'text'", "[3]", "[(1, {})]", "[{3: 4}]", "[('a', {3: 4})]", "(1 / i for i in [0])"]
)
@pytest.mark.parametrize("commands", ["", "COMMANDS = 3\n", "COMMANDS = None\n", "COMMANDS = [[]]\n"])
def test_a_sweep_file_with_an_invalid_structure_is_refused(tmp_path, value, commands):
    path = tmp_path / "mine.py"
    path.write_text(f"{commands}def get_sweep():\n    return {value}\n")
    error_of(READERS["get_sweep"], path)


def test_an_interrupt_is_not_reported_as_a_failure_of_the_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_file(path)


def test_a_file_that_defines_a_dataclass_is_loaded_once(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\nimport dataclasses, pathlib\nfrom ml_collections import FrozenConfigDict\n"
        "@dataclasses.dataclass\nclass Size:\n    width: int = 3\n"
        f"with open({str(tmp_path / 'count')!r}, 'a') as file:\n    file.write('x')\n"
        "def get_config():\n    return FrozenConfigDict({'seed': Size().width})\n"
    )
    with pytest.raises(UsageError, match="--devices"):
        cli.run_command(["preflight", f"--config={path}", "--config.seed=4", "--devices=0"])
    assert (tmp_path / "count").read_text() == "x"


@pytest.mark.parametrize(
    "words", ["train --workdir={tmp}/run", "evaluate --make_reference --out={tmp}/x.npz", "preflight --devices=1"]
)
def test_every_command_with_a_config_refuses_a_broken_one(tmp_path, words):
    path = tmp_path / "mine.py"
    path.write_text("import sys\n\nsys.exit(0)\n")
    told = error_of(lambda path: cli.run_command([*words.format(tmp=tmp_path).split(), f"--config={path}"]), path)
    assert "line 3" in told
    assert [child.name for child in tmp_path.iterdir()] == ["mine.py"]
