"""Empty paths are refused: an unset shell variable does not mean the current folder."""

import re

import numpy as np
import pytest
from tiny import EXPERIMENTS, mixture_config, open_source, settings, update

import cfgjax
from cfgjax.api.training_runs import train as train_run
from cfgjax.base import bucket_clients, inception_weights
from cfgjax.base.errors import UsageError
from cfgjax.base.experiments import file_of
from cfgjax.base.paths import ON_DISK, PathParser
from cfgjax.base.storage import expanded, place
from cfgjax.cli import main as cli
from cfgjax.cli import train
from cfgjax.data.sources import registry
from cfgjax.models.cascade import load_cascade
from cfgjax.runs.config import parse_flags
from cfgjax.runs.data_settings import DataSettings
from cfgjax.runs.sections import read_section
from cfgjax.runs.workdir import Claim
from cfgjax.training.run import Program

FOLLOWING = "--seed=1"
WRONG = {"empty": "", "blank": " \t", "NUL": "runs/a\0b"}
CONFIG = f"--config={EXPERIMENTS / 'mixture.py'}"
WRONG_URLS = {
    "other": ("https://a.b/c", "gs:// and s3://"),
    "file": ("file:///a", "without file:"),
    "slash": ("gs:/bucket1/x", "gs://BUCKET/PATH"),
    "slashes": ("gs:bucket1/x", "gs://BUCKET/PATH"),
    "capitals": ("GS://bucket1/x", "gs://BUCKET/PATH"),
    "colon": ("runs:", "write ./runs: for a local path"),
    "pattern": ("gs://bucket1/a[1]", "cannot have the character ["),
    "version": ("gs://bucket1/a#1", "cannot have the character #"),
    "parent": ("gs://bucket1/a/../b", "the complete path"),
    "home": ("~nobody_at_all/x", "the home directory of ~nobody_at_all is not known"),
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


def hash_of(**keys):
    """The hash of the data set of the keys of config.data."""
    data = read_section(DataSettings, "data", keys)
    return registry.data_hash(data, registry.open_source(data))


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


def test_a_tilde_is_the_home_directory_in_flags_words_and_configs(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "home" / "x.npz", image=image, label=np.arange(6) % 2)
    data = {"source": "npz", "num_classes": 2, "image_shape": (8, 8, 1), "split": "all"}
    hashes = [hash_of(path=path, **data) for path in ("~/x.npz", str(tmp_path / "home" / "x.npz"))]
    assert hashes[0] == hashes[1] is not None
    assert cli.run_command(["prepare", "npz", "~/x.npz", "~/prepared", "--size=8", "--channels=1", "--workers=1"]) == 0
    assert open_source(**data | {"source": "prepared", "path": "~/prepared"}).image.shape == (6, 8, 8, 1)
    (tmp_path / "home" / "own.py").write_text("def get_config():\n    return {}\n")
    assert file_of("~/own.py", "config file", EXPERIMENTS) == str(tmp_path / "home" / "own.py")
    assert PathParser().parse("~/runs/a") == str(tmp_path / "home" / "runs" / "a")
    assert expanded("gs://bucket1/~a") == "gs://bucket1/~a"
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("name", ["gs:/bucket1/a", "gs:a", "runs:", "http://a/b", "~a"])
def test_a_local_path_may_have_any_name_after_a_dot_and_a_slash(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert place(PathParser().parse(f"./{name}")) == place(f"./{name}") == tmp_path / name
    assert place(place(f"./{name}") / "checkpoints") == tmp_path / name / "checkpoints"


def test_a_run_that_cannot_begin_with_its_init_from_leaves_nothing(tmp_path):
    for origin, told in (
        (f"{tmp_path}/none", "holds no run"),
        ("gs:/bucket1/a", "^train.init_from=.*gs://BUCKET/PATH"),
    ):
        with pytest.raises(UsageError, match=told):
            train_run(update(mixture_config(), {"train.init_from": origin}), tmp_path / "run")
        assert not list(tmp_path.iterdir())


def test_a_config_file_in_a_bucket_is_refused():
    with pytest.raises(UsageError, match=f"^config file gs://bucket1/a.py: {ON_DISK}"):
        file_of("gs://bucket1/a.py", "config file", EXPERIMENTS)


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
