"""Writers of tracking services: one run per workdir, each step once, and training that outlives the service."""

import contextlib
import importlib.util
import logging
import time

import numpy as np
import pytest
from tiny import mixture_config

import cfgjax
from cfgjax.base.errors import UsageError
from cfgjax.runs.settings import Settings
from cfgjax.training.writers import WRITERS, check_named
from cfgjax.training.writers.remote import RemoteRun, need

PICTURE = np.zeros((4, 4, 3), np.uint8)


class Service(RemoteRun):
    """A service in memory that can fail."""

    service = "service"

    def __init__(self, workdir, sent):
        super().__init__(workdir)
        self.sent, self.fails = sent, False

    def send(self, step, metrics):
        if self.fails:
            raise ConnectionError("no route")
        self.sent += [(step, name) for name in metrics]

    def send_image(self, step, name, picture):
        self.send(step, {name: 0.0})


def test_a_resumed_run_sends_no_step_twice(tmp_path):
    sent = []
    first = Service(tmp_path, sent)
    for step in (10, 20, 30):
        first.write(step, {"loss": 1.0})
    first.write(30, {"FD": 2.0})  # measured at the same step
    first.image(30, "samples", PICTURE)
    resumed = Service(tmp_path, sent)  # from a checkpoint at 15
    for step in (20, 30, 40):
        resumed.write(step, {"loss": 1.0})
    resumed.write(30, {"FD": 2.0})
    resumed.image(30, "samples", PICTURE)
    assert sent == [(10, "loss"), (20, "loss"), (30, "loss"), (30, "FD"), (30, "samples"), (40, "loss")]


def test_what_a_failing_service_missed_is_sent_later_in_order(tmp_path, caplog):
    sent = []
    writer = Service(tmp_path, sent)
    writer.fails = True
    with caplog.at_level(logging.WARNING, "cfgjax"):
        for step in (10, 20):
            writer.write(step, {"loss": 1.0})
        writer.send_all()
        assert sent == []
        writer.fails = False
        writer.write(30, {"loss": 1.0})
    assert sent == [(10, "loss"), (20, "loss"), (30, "loss")]
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        "service does not answer",
        "service: 2 entries were not sent; metrics.jsonl has them",
    ]


def test_the_identity_of_a_run_stays_in_its_workdir(tmp_path):
    assert Service(tmp_path, []).identity == ""
    Service(tmp_path, []).set_identity("abc")
    assert Service(tmp_path, []).identity == "abc"


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("tensorbord",), "unknown writer 'tensorbord', did you mean 'tensorboard'?"),
        (("tensorboard", "tensorboard"), "config.log.writers names 'tensorboard' twice"),
    ],
)
def test_writers_that_cannot_be_are_one_line_errors_before_training(names, told, tmp_path):
    config = mixture_config(**{"log.writers": names})
    with pytest.raises(UsageError) as raised:
        cfgjax.train(config, tmp_path / "run")
    assert told in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_package_that_is_missing_is_named_with_its_extra():
    with pytest.raises(UsageError, match=r"no_such is not installed: pip install 'cfgjax\[wandb\]'"):
        need("no_such", "wandb")


def test_without_writers_only_metrics_jsonl_is_written(tmp_path):
    cfgjax.train(mixture_config(**{"log.writers": ()}), tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").exists()
    assert not list((tmp_path / "run").glob("events*"))


needs = lambda package: pytest.mark.skipif(
    importlib.util.find_spec(package) is None, reason=f"{package} is not installed: pip install 'cfgjax[{package}]'"
)


def write_two_attempts(kind, workdir):
    """Writes steps 10 and 20 and a picture, and after a resumption from step 10 the steps 20 and 30."""
    workdir.mkdir()
    settings = Settings.from_config(mixture_config(**{"train.num_steps": 30, "log.project": "tests"}))
    for start, steps in ((0, (10, 20)), (10, (20, 30))):
        with contextlib.closing(WRITERS[kind](workdir, start, settings)) as writer:
            for step in steps:
                writer.write(step, {"loss": 1 / step, "images_per_second": 5.0})
                writer.image(step, "samples", PICTURE)
        time.sleep(1.1)  # wandb names the folder of an attempt by the second


@pytest.mark.e2e
@needs("mlflow")
def test_a_resumed_run_is_one_run_of_mlflow_with_each_step_once(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    check_named(["mlflow"])
    write_two_attempts("mlflow", tmp_path / "run")
    client = MlflowClient((tmp_path / "run" / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [10, 20, 30]
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    assert run.data.params["train.num_steps"] == "30"
    assert len(list((tmp_path / "run" / "mlruns").rglob("*samples*.png"))) >= 3


def log_records(content):
    """Yields the records of a .wandb file: LevelDB's log format, blocks of 32 KiB after a header of 7 bytes."""
    at, parts = 7, b""
    while at < len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # complete, or the last part
            yield parts
            parts = b""


@pytest.mark.e2e
@needs("wandb")
def test_a_resumed_run_is_one_run_of_wandb_with_each_step_once(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    from wandb.proto import wandb_internal_pb2

    check_named(["wandb"])
    write_two_attempts("wandb", tmp_path / "run")
    steps, identities = [], set()
    for path in sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")):
        for data in log_records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            names = {item.key or "/".join(item.nested_key) for item in record.history.item}
            steps += [record.history.step.num] * ("loss" in names)
            identities |= {record.run.run_id} - {""}
    assert steps == [10, 20, 30]
    assert len(identities) == 1


@pytest.mark.e2e
@needs("wandb")
def test_wandb_without_a_login_is_refused_before_training(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UsageError, match="wandb has no login"):
        cfgjax.train(mixture_config(**{"log.writers": ("wandb",)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
