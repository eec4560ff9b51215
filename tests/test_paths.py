"""Empty paths are refused: an unset shell variable does not mean the current folder."""

import re

import pytest
from tiny import EXPERIMENTS, mixture_config, settings

import cfgjax
from cfgjax.api.training_runs import train as train_run
from cfgjax.base import bucket_clients, inception_weights
from cfgjax.base.errors import UsageError
from cfgjax.base.paths import ON_DISK
from cfgjax.cli import main as cli
from cfgjax.cli import train
from cfgjax.models.cascade import load_cascade
from cfgjax.runs.config import parse_flags
from cfgjax.runs.workdir import Claim
from cfgjax.training.run import Program

FOLLOWING = "--seed=1"
WRONG = {"empty": "", "blank": " \t", "NUL": "runs/a\0b"}
CONFIG = f"--config={EXPERIMENTS / 'mixture.py'}"
WRONG_URLS = {
    "other": ("https://a.b/c", "gs:// and s3://"),
    "file": ("file:///a", "without file:"),
    "slash": ("gs:/bucket1/x", "gs://BUCKET/PATH"),
    "bucket": ("gs:///x", "gs://BUCKET/PATH"),
    "package": ("gs://bucket1/x", "pip install 'cfgjax[gcs]'"),
}
FLAGS = {  # command: its flags that are paths
    "train": "config workdir",
    "sample": "workdir out guide weak base upsampler",
    "evaluate": "config workdir out guide weak base upsampler classifier inception reference images samples",
    "compare": "out plot",
    "export": "workdir base upsampler out",
    "demo": "workdir",
    "download": "out",
    "sweep": "sweep out base workdir logs python",
    "preflight": "config json scratch",
    "prepare folder": "data_dir manual_dir",
    "convert openai-adm": "checkpoint out model_flags",
    "convert diffusers": "checkpoint out",
    "convert to-openai-adm": "workdir out",
    "launch local": "python",
    "launch slurm": "python logs",
    "launch kubernetes": "python mount",
    "launch tpu_vm": "python",
}
PAIRS = [(command, flag) for command, names in FLAGS.items() for flag in names.split()]
KEYS = ["data.path", "data.data_dir", "train.init_from", "evaluate.reference", "evaluate.classifier"]


@pytest.mark.parametrize("path", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize(("command", "flag"), PAIRS)
def test_every_path_flag_refuses_an_invalid_path(command, flag, path):
    tail = ["--", "train", CONFIG, "--workdir=x"] if command.startswith("launch") else []
    with pytest.raises(UsageError, match=rf"--{flag}\W") as raised:
        cli.run_command([*command.split(), f"--{flag}={path}", *tail])
    assert re.search("empty|NUL", str(raised.value)) and "\n" not in str(raised.value)


@pytest.mark.parametrize(("path", "reason"), WRONG_URLS.values(), ids=WRONG_URLS)
@pytest.mark.parametrize(("command", "flag"), [pair for pair in PAIRS if pair[1] != "config"])
def test_every_path_flag_refuses_a_url_that_cannot_be_used(command, flag, path, reason, tmp_path, monkeypatch):
    monkeypatch.setitem(bucket_clients.CLIENTS, "gs", ("absent_package", "gcs"))
    monkeypatch.chdir(tmp_path)
    tail = ["--", "train", CONFIG, "--workdir=x"] if command.startswith("launch") else []
    with pytest.raises(UsageError, match=rf"--{flag}\W") as raised:
        cli.run_command([*command.split(), f"--{flag}={path}", *tail])
    assert reason in str(raised.value) and "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


LOCAL = {
    "sweep": "sweep base logs python",
    "preflight": "json scratch",
    "prepare folder": "data_dir manual_dir",
    "launch local": "python",
    "launch slurm": "python logs",
    "launch kubernetes": "python mount",
    "launch tpu_vm": "python",
}


@pytest.mark.parametrize(("command", "flag"), [(name, flag) for name, own in LOCAL.items() for flag in own.split()])
def test_flags_of_files_on_a_disk_refuse_buckets(command, flag, tmp_path, monkeypatch):
    monkeypatch.setitem(bucket_clients.CLIENTS, "gs", ("json", "gcs"))  # installed everywhere
    monkeypatch.chdir(tmp_path)
    tail = ["--", "train", CONFIG, "--workdir=x"] if command.startswith("launch") else []
    with pytest.raises(UsageError, match=f"--{flag}=gs://bucket1/x.*{ON_DISK}"):
        cli.run_command([*command.split(), f"--{flag}=gs://bucket1/x", *tail])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize(
    "words", [["compare"], ["prepare", "folder", "x"], ["prepare", "npz", "x"], ["prepare", "tfds", "x"]]
)
def test_invalid_paths_among_the_words_are_refused(words, path):
    with pytest.raises(UsageError, match="empty|NUL"):
        cli.run_command([*words, path])


@pytest.mark.parametrize(("command", "flag"), [pair for pair in PAIRS if pair[1] != "config"])
def test_a_flag_is_not_taken_as_the_path_of_the_flag_before_it(command, flag):
    tail = ["--", "train", CONFIG, "--workdir=x"] if command.startswith("launch") else []
    with pytest.raises(UsageError, match=rf"--{flag}\W.*missing"):
        cli.run_command([*command.split(), f"--{flag}", FOLLOWING, *tail])


def test_launched_and_swept_commands_are_checked():
    with pytest.raises(UsageError, match="--workdir"):
        cli.run_command(["launch", "local", "--dry_run", "--", "train", CONFIG, "--workdir="])


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("path", WRONG.values(), ids=WRONG)
def test_invalid_paths_in_a_config_are_refused(key, path):
    config = mixture_config()
    with config.unlocked():
        config.update_from_flattened_dict({key: path})
    with pytest.raises(UsageError, match=rf"^{re.escape(key)} is .*need a non-empty string without NUL"):
        Program(config)


def test_an_empty_path_in_an_override_is_refused():
    argv = ["cfgjax train", CONFIG, "--config.train.init_from="]
    with pytest.raises(UsageError, match=r"^train\.init_from is ''; need"):
        parse_flags(train.define_flags(argv), argv)


@pytest.mark.parametrize("path", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize(
    "call",
    [
        cfgjax.load,
        cfgjax.load_guide,
        lambda path: load_cascade(path, "x"),
        lambda path: Claim(path, settings(mixture_config())),
        lambda path: train_run(mixture_config(), path),
        inception_weights.download_inception,
        inception_weights.find_inception,
    ],
)
def test_invalid_paths_in_the_python_api_are_refused(call, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="empty|NUL"):
        call(path)
    assert not list(tmp_path.iterdir())


def test_slurm_needs_a_folder_on_a_disk_for_its_output_if_the_workdir_is_in_a_bucket(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(bucket_clients.CLIENTS, "gs", ("json", "gcs"))
    monkeypatch.chdir(tmp_path)
    words = ["launch", "slurm", "--time=60", "--dry_run"]
    tail = ["--", "train", CONFIG, "--workdir=gs://bucket1/x"]
    with pytest.raises(UsageError, match="--logs must be given"):
        cli.run_command([*words, *tail])
    assert cli.run_command([*words, "--logs=logs", *tail]) == 0
    assert "--output=logs/%j.log" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_run_is_not_trained_in_s3(tmp_path, monkeypatch):
    monkeypatch.setitem(bucket_clients.CLIENTS, "s3", ("json", "s3"))
    monkeypatch.chdir(tmp_path)
    for words in ([CONFIG], ["--data=images"]):
        with pytest.raises(UsageError, match="checkpoints cannot be kept in s3://"):
            cli.run_command(["train", *words, "--workdir=s3://bucket1/x"])
    assert not list(tmp_path.iterdir())


def test_the_cache_folder_is_on_a_disk(monkeypatch):
    monkeypatch.setitem(bucket_clients.CLIENTS, "gs", ("json", "gcs"))
    monkeypatch.setenv("XDG_CACHE_HOME", "gs://bucket1/x")
    with pytest.raises(UsageError, match=f"XDG_CACHE_HOME.*{ON_DISK}"):
        cli.run_command(["compare", "x"])
