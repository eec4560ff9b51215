"""--config=FILE:ARGUMENT works wherever --config=FILE does, and a bad argument is one line with what would be right."""

import json
import shlex
import shutil

import pytest
from tiny import EXPERIMENTS, settings

from cfgjax.base.errors import UsageError
from cfgjax.base.python_files import split_argument
from cfgjax.cli import main as cli
from cfgjax.jobs.launch import LAUNCHERS
from cfgjax.runs.config import load_config, load_file, variants
from cfgjax.runs.workdir import Claim

ADM = f"{EXPERIMENTS}/adm.py"
FILES = {
    "none": "def get_config():\n    return ConfigDict({'seed': 7})\n",
    "any": "def get_config(seed):\n    return ConfigDict({'seed': int(seed)})\n",
    "listed": "ARGUMENTS = (1, 2)\ndef get_config(seed):\n    return ConfigDict({'seed': int(seed)})\n",
    "odd": "ARGUMENTS = 3\ndef get_config(seed):\n    return ConfigDict()\n",
    "optional": "ARGUMENTS = ('1', '2')\ndef get_config(seed='2'):\n    return ConfigDict({'seed': int(seed)})\n",
}
NEEDED = {
    "local": "--num_processes=2",
    "slurm": "--time=9:00:00",
    "kubernetes": "--image=i --hosts=1 --claim=c",
    "tpu_vm": "--zone=z",
}


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        (tmp_path / f"{name}.py").write_text(f"from ml_collections import ConfigDict\n{text}")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "seed"),
    [("none.py", 7), ("any.py:3", 3), ("any.py:12", 12), ("listed.py:2", 2), ("optional.py", 2), ("optional.py:1", 1)],
)
def test_the_argument_reaches_get_config_as_a_string(folder, text, seed):
    assert load_file(folder / text).seed == load_config(folder / text).seed == seed


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("none.py:3", "takes no argument, '3' is given; use /"),
        ("none.py:", "takes no argument, '' is given"),
        ("any.py", "needs an argument, /"),
        ("any.py:", "needs an argument"),
        ("any.py:x", "ValueError"),
        ("listed.py", "with one of 1, 2"),
        ("listed.py:", "with one of 1, 2"),
        ("listed.py:3", "unknown argument '3'; known: 1, 2"),
        ("listed.py:1:2", "unknown argument '1:2'"),
        ("optional.py:", "with one of 1, 2"),
        ("odd.py", "ARGUMENTS: TypeError"),
        ("missing.py:1", "there is no config file"),
        ("none.txt:1", "there is no config file"),
    ],
)
def test_a_bad_argument_is_reported_on_one_line_with_the_file_and_valid_values(folder, text, told):
    with pytest.raises(UsageError) as e:
        load_file(folder / text)
    assert told in str(e.value)
    assert str(folder / text.partition(":")[0]) in str(e.value)
    assert len(str(e.value).splitlines()) == 1


def test_a_path_with_a_colon_is_a_path(folder, monkeypatch):
    (folder / "a.py:b").mkdir()
    shutil.copy(folder / "listed.py", folder / "a.py:b" / "x.py")
    shutil.copy(folder / "none.py", folder / "c:d.py")
    assert load_file(f"{folder}/a.py:b/x.py:2").seed == 2
    assert load_file(f"{folder}/c:d.py").seed == 7
    assert split_argument(f"{folder}/a.py:b") == (f"{folder}/a.py:b", None)


def test_the_variants_of_a_file_are_those_of_its_arguments(folder):
    assert variants(folder / "listed.py") == [f"{folder}/listed.py:1", f"{folder}/listed.py:2"]
    assert variants(folder / "none.py") == [f"{folder}/none.py"]


def printed(capsys, words):
    assert cli.run_command(shlex.split(words)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("launcher", NEEDED)
def test_launchers_pass_the_argument_on(launcher, capsys):
    assert launcher in LAUNCHERS
    train = f"train --config={ADM}:64 --workdir=/runs/adm_64 --config.train.batch_size=64"
    assert f"--config={ADM}:64" in printed(capsys, f"launch {launcher} --dry_run {NEEDED[launcher]} -- {train}")
    with pytest.raises(UsageError, match="known: 64, 128, 256, 512"):
        cli.run_command(
            shlex.split(f"launch {launcher} --dry_run {NEEDED[launcher]} -- {train.replace(':64', ':63x')}")
        )


@pytest.mark.parametrize("flags", ["", "--launcher=slurm --time=9:00:00"])
def test_sweeps_take_a_base_with_an_argument(flags, capsys, tmp_path):
    sweep = tmp_path / "sweep.py"
    sweep.write_text(f"BASE = {ADM + ':256'!r}\ndef get_sweep():\n    return [{{'config.seed': 1}}]\n")
    words = f"sweep --sweep={sweep} --out={tmp_path}/out --dry_run {flags}"
    assert f"--config={ADM}:256" in printed(capsys, words)
    assert f"--config={ADM}:512" in printed(capsys, f"{words} --base={ADM}:512")
    with pytest.raises(UsageError, match=r"run 'seed=1': .* needs an argument"):
        cli.run_command(shlex.split(f"{words} --base={ADM}"))


@pytest.mark.parametrize(
    "words", ["train --workdir={tmp}/run", "evaluate --make_reference --out={tmp}/x.npz", "preflight --devices=1"]
)
def test_every_command_with_a_config_refuses_a_bad_argument(words, tmp_path):
    for argument in ("", ":", ":1"):
        with pytest.raises(UsageError, match="64, 128, 256, 512"):
            cli.run_command([*words.format(tmp=tmp_path).split(), f"--config={ADM}{argument}"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", ["train", "evaluate --make_reference --out=x.npz", "preflight", "train --workdir=run"]
)
def test_print_config_prints_the_config_with_its_overrides_and_does_nothing_else(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module in ("train.begin_command", "evaluate.begin_command", "preflight.import_jax"):
        monkeypatch.setattr(f"cfgjax.cli.{module}", None)
    overrides = "--config.train.batch_size=8 --config.model.num_heads=None --config.model.multipliers=(1,2)"
    assert cli.run_command([*words.split(), f"--config={ADM}:128", "--print_config", *overrides.split()]) == 0
    out = capsys.readouterr().out
    config = load_file(f"{ADM}:128").to_dict()
    config["train"]["batch_size"], config["model"]["num_heads"], config["model"]["multipliers"] = 8, None, [1, 2]
    assert json.loads(out) == json.loads(json.dumps(config))
    assert not list(tmp_path.iterdir())


def test_print_config_prints_the_config_of_the_workdir(capsys, tmp_path):
    claim = Claim(tmp_path, settings(load_file(f"{ADM}:128")))
    claim.write_config()
    claim.close()
    assert printed(capsys, f"train --config={ADM}:128 --print_config") == (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (f"--config={ADM}:128 --config.train.batch_size=0", "train.batch_size"),
        (f"--config={ADM}:128 --config.train.batchsize=1", "batchsize"),
        (f"--config={ADM}", "needs an argument"),
        ("", "--config must be given"),
        (f"--config={ADM}:128 word", "word"),
    ],
)
@pytest.mark.parametrize("command", ["train", "evaluate", "preflight"])
def test_print_config_refuses_everything_that_the_command_refuses(command, words, told):
    with pytest.raises(UsageError) as e:
        cli.run_command([command, "--print_config", *words.split()])
    assert told in str(e.value)
