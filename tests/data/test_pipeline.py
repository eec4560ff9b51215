"""Batches from worker processes are those of `batch_at`, and a worker that dies is an error."""

import contextlib
import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import command
import jax
import numpy as np
import pytest
from compiling import QUICKLY
from images import write_folder, write_npz
from runs import metrics, train
from tiny import EXPERIMENTS, open_source, same_trees, settings, update

from cfgjax.base.errors import UsageError
from cfgjax.base.files import read_npz
from cfgjax.cli.main import run_command
from cfgjax.data.batches import batch_at
from cfgjax.data.pipeline import Batches
from cfgjax.evaluation.features.networks import load_features
from cfgjax.evaluation.features.reference import of_dataset
from cfgjax.runs.changes import check_resumable
from cfgjax.runs.config import load_file
from cfgjax.training.run import Run

pytest.importorskip("grain")
SIZE, K = 6, 2  # examples of a batch, steps of a dispatch


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A prepared set of 50 images 8×8×3 of 10 classes."""
    folder = tmp_path_factory.mktemp("data")
    write_npz(folder / "a.npz", count=50, classes=10)
    run_command(["prepare", "npz", f"{folder}/a.npz", f"{folder}/set", "--size=8", "--workers=1"])
    return str(folder / "set")


@pytest.fixture
def batches(path):
    """batches(num_workers, rows=…, **options of config.data) → `Batches`, closed at the end."""
    opened = []

    def make(num_workers, rows=None, **options):
        options = {"num_classes": 10, "image_shape": (8, 8, 3), "random_flip": True} | options
        dataset = open_source(source="prepared", path=path, num_workers=num_workers, **options)
        opened.append(Batches(dataset, 3, SIZE, np.arange(SIZE) if rows is None else rows, K))
        return dataset, opened[-1]

    yield make
    for made in opened:
        made.close()


def expected(dataset, step, rows=None):
    return jax.tree.map(lambda *parts: np.stack(parts), *[batch_at(dataset, 3, step + j, SIZE, rows) for j in range(K)])


@pytest.mark.parametrize("num_workers", [0, *(pytest.param(n, marks=pytest.mark.e2e) for n in (1, 3))])
def test_batches_do_not_depend_on_the_number_of_workers_nor_on_where_they_start(num_workers, batches):
    dataset, made = batches(num_workers, low_res_size=4)
    for step in (*range(10, 26, K), 4):  # over the end of an epoch, on to another place, and back
        found = made.at(step)
        assert found.keys() == {"image", "label", "low_res"}
        assert same_trees(found, expected(dataset, step))


@pytest.mark.e2e
def test_workers_decode_the_images_of_a_folder(tmp_path):
    data = {"source": "folder", "path": str(write_folder(tmp_path)), "num_classes": 3, "image_shape": (8, 8, 3)}
    dataset = open_source(**data, num_workers=1)
    made = Batches(dataset, 3, SIZE, np.arange(SIZE), K)
    with contextlib.closing(made):
        assert same_trees(made.at(4), expected(dataset, 4))


@pytest.mark.e2e
def test_crops_do_not_depend_on_the_workers(batches):
    dataset, made = batches(1, random_crop=0.5, split="train")
    assert same_trees(made.at(0), expected(dataset, 0))


@pytest.mark.e2e
def test_each_process_computes_its_own_rows(batches):
    rows = np.array([1, 4])
    dataset, made = batches(1, rows)
    found = made.at(2)
    assert same_trees(found, expected(dataset, 2, rows))
    assert same_trees(found["image"], expected(dataset, 2)["image"][:, rows])


@pytest.mark.e2e
def test_a_killed_worker_is_an_error_within_seconds(batches):
    _, made = batches(2)
    made.at(0)
    os.kill(made._ahead._workers[1].pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(OSError, match=r"a data worker process died before step \d+ \(killed by sig"):
        _ = [made.at(step) for step in range(K, 10_000, K)]
    assert time.monotonic() - start < 300  # half of the time after which a worker is given up


@pytest.mark.e2e
def test_a_frozen_worker_is_reported_first_and_an_error_later(batches, capsys):
    _, made = batches(2, worker_timeout_seconds=8)
    _ = [made.at(step) for step in (0, K, 2 * K)]
    frozen = made._ahead._workers[0].pid
    os.kill(frozen, signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(
        OSError, match=rf"no batch has come for \d+ s: step \d+ waits for worker process {frozen} \(stop"
    ):
        _ = [made.at(step) for step in range(3 * K, 10_000, K)]
    assert time.monotonic() - start >= 8
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert re.search(rf"^warning: no batch has come for \d+ s: .* worker process {frozen} \(stopped\)$", told[0])
    assert not command.lives(frozen)


@pytest.mark.e2e
def test_a_frozen_worker_that_continues_is_not_an_error(batches, capsys):
    dataset, made = batches(1, worker_timeout_seconds=60)
    made.at(0)
    frozen = made._ahead._workers[0].pid
    os.kill(frozen, signal.SIGSTOP)
    timer = threading.Timer(4, os.kill, (frozen, signal.SIGCONT))
    timer.start()
    for step in range(K, 12 * K, K):
        assert same_trees(made.at(step), expected(dataset, step))
    timer.join()
    assert "warning" not in capsys.readouterr().err


@pytest.mark.e2e
def test_a_failure_in_a_worker_is_reported_as_without_workers(path, tmp_path, batches):
    _, made = batches(1)
    made._draw.args[0].image.read.paths[0] = str(tmp_path / "gone.array_record")
    for _ in range(2):
        with pytest.raises(OSError, match="gone.array_record is damaged"):
            made.at(0)


def config_of(path, **overrides):
    """The config of a small classifier on a prepared set."""
    config = load_file(EXPERIMENTS / "fashion_mnist_classifier.py")
    small = {
        "data.path": path, "data.crop": "adm", "data.image_shape": (8, 8, 3), "data.num_workers": 0,
        "model.channels": 32, "model.multipliers": (1,), "train.batch_size": 8, "train.num_steps": 8,
        "train.log_every_steps": 2, "train.steps_per_dispatch": 2, "checkpoint.every_steps": 4,
        "evaluate.every_steps": 8, "optimizer.warmup_steps": 0,
    }  # fmt: skip
    return update(config, small | overrides)


@pytest.mark.e2e
def test_stopped_and_resumed_training_with_workers_equals_training_without(path, tmp_path):
    straight, broken = (config_of(path, **{"data.num_workers": n}) for n in (0, 1))
    train(straight, tmp_path / "straight")
    train(broken, tmp_path / "broken", stops=[2])
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "straight")
    assert metrics(tmp_path / "broken")


@pytest.fixture
def replaced(tmp_path):
    """(path of a prepared set, a function that puts another in its place, (first, second hash))"""
    folder, hashes = tmp_path / "set", []
    for count in (40, 50):
        write_npz(tmp_path / f"{count}.npz", count=count, classes=10)
        run_command(["prepare", "npz", f"{tmp_path}/{count}.npz", f"{tmp_path}/{count}", "--size=8", "--workers=1"])
        hashes.append(json.loads((tmp_path / f"{count}" / "dataset.json").read_text())["hash"])
    (tmp_path / "40").rename(folder)

    def replace():
        folder.rename(tmp_path / "before")
        (tmp_path / "50").rename(folder)

    return str(folder), replace, hashes


@pytest.mark.e2e
def test_a_run_does_not_resume_with_another_data_set_under_the_same_path(replaced, tmp_path):
    path, replace, (first, second) = replaced
    config, workdir = config_of(path), tmp_path / "run"
    train(config, workdir, stops=[2], ends=False)
    recorded = {"source": "prepared", "path": path, "hash": first, "classes": [str(i) for i in range(10)]}
    assert json.loads((workdir / "data.json").read_text()) == recorded
    replace()
    held = {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file() and file.name != ".lock"}
    with pytest.raises(UsageError, match=f"hash {first[:16]}, but .*set now holds .* {second[:16]}; nothing was overw"):
        train(config, workdir)
    assert {file: file.read_bytes() for file in held} == held


@pytest.mark.e2e
def test_a_run_of_a_version_without_data_records_resumes_and_writes_one(replaced, tmp_path):
    path, replace, (_, second) = replaced
    config, workdir = config_of(path), tmp_path / "run"
    train(config, workdir, stops=[2], ends=False)
    (workdir / "data.json").unlink()
    replace()
    train(config, workdir, stops=[1], ends=False)
    assert json.loads((workdir / "data.json").read_text())["hash"] == second
    (workdir / "data.json").write_text("{}")
    with pytest.raises(UsageError, match=r"data\.json is damaged: it lacks the key 'hash'"):
        train(config, workdir)


def test_batches_placed_in_advance_are_those_requested_later(path):
    made = Run(config_of(path), devices=jax.devices()[:1])
    plain = [jax.device_get(made.batches(step)) for step in (0, 2, 6)]
    made.look_ahead(2)
    assert same_trees(jax.device_get(made.batches(2)), plain[1])
    made.look_ahead(2)
    assert same_trees(jax.device_get(made.batches(6)), plain[2])
    assert same_trees(jax.device_get(made.batches(2)), plain[1])


def test_a_run_may_resume_with_another_number_of_workers_but_not_with_other_data(path):
    check_resumable(settings(config_of(path)), settings(config_of(path, **{"data.num_workers": 5})))
    with pytest.raises(UsageError, match="data.random_flip is False"):
        check_resumable(settings(config_of(path)), settings(config_of(path, **{"data.random_flip": False})))


def test_workers_for_arrays_in_memory_are_refused():
    with pytest.raises(UsageError, match="num_workers is 2, but the images of source 'digits' are in memory"):
        open_source(source="digits", num_classes=10, image_shape=(8, 8, 1), num_workers=2)


@pytest.mark.e2e
@pytest.mark.parametrize("fate", ["killed", "frozen", pytest.param("orphaned", marks=pytest.mark.slow)])
def test_a_dead_worker_fails_the_training_and_no_worker_outlives_its_process(fate, path, tmp_path):
    overrides = {
        "data.path": path, "data.image_shape": "(8, 8, 3)", "data.num_workers": 2, "data.crop": "adm",
        "model.channels": 32, "model.multipliers": "(1,)", "train.batch_size": 8, "train.log_every_steps": 10,
        "data.worker_timeout_seconds": 6,
    }  # fmt: skip
    flags = " ".join(f"--config.{key}={value}".replace(" ", "") for key, value in overrides.items())
    logged = tmp_path / "run" / "metrics.jsonl"
    process = command.start(f"train --config=experiments/fashion_mnist_classifier.py --workdir={tmp_path}/run {flags}")
    try:
        command.wait_until(lambda: logged.exists() and logged.read_text(), 300)
        workers = [pid for pid in command.children(process.pid) if "spawn_main" in command_line(pid)]
        assert len(workers) == 2
        victim = process.pid if fate == "orphaned" else workers[0]
        os.kill(victim, signal.SIGSTOP if fate == "frozen" else signal.SIGKILL)
        code, _, err = command.finish(process)
    finally:
        process.kill()
    if fate != "orphaned":
        assert code == 1
        why = {"killed": "a data worker process died", "frozen": f"worker process {victim} (stopped)"}
        assert why[fate] in err.splitlines()[-1]
    command.wait_until(lambda: not any(map(command.lives, workers)), 60)


SMALL = """--config.data.image_shape=(8,8,3) --config.data.crop=adm --config.model.channels=32
    --config.model.multipliers=(1,) --config.model.dropout=0.0 --config.train.batch_size=8 --config.train.num_steps=8
    --config.train.log_every_steps=2 --config.train.steps_per_dispatch=2 --config.checkpoint.every_steps=8
    --config.evaluate.every_steps=8 --config.optimizer.warmup_steps=0"""


@pytest.mark.e2e
def test_two_processes_with_workers_train_on_the_batches_of_one_process_without(path, tmp_path):
    words = f"train --config=experiments/fashion_mnist_classifier.py --config.data.path={path} {SMALL}"
    together = f"launch local --num_processes=2 -- {words} --config.data.num_workers=2 --workdir={tmp_path}/two"
    code, _, err = command.run(together, environ=QUICKLY)
    assert code == 0, err
    straight = {"train.batch_size": 8, "model.dropout": 0.0, "checkpoint.every_steps": 8}
    train(config_of(path, **straight), tmp_path / "one")
    two, one = metrics(tmp_path / "two"), metrics(tmp_path / "one")
    assert [line["step"] for line in two] == [line["step"] for line in one] and len(one) == 5
    for a, b in zip(two, one, strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-5)
    assert (tmp_path / "two" / "data.json").read_bytes() == (tmp_path / "one" / "data.json").read_bytes()


@pytest.mark.e2e
def test_the_reference_of_a_prepared_set_equals_that_of_its_images_as_an_npz(path, tmp_path):
    train(config_of(path), tmp_path / "classifier", stops=[1], ends=False)
    make = f"evaluate --make-reference --config={EXPERIMENTS}/cifar10.py --config.data.image_shape=(8,8,3) "
    make += f"--config.data.path={path} --features=classifier --classifier={tmp_path}/classifier --out={tmp_path}/r.npz"
    assert run_command(make.split()) == 0
    npz = {"source": "npz", "path": f"{Path(path).parent}/a.npz", "num_classes": 10, "image_shape": (8, 8, 3)}
    network = load_features("classifier", settings(config_of(path)).data, classifier=tmp_path / "classifier")
    found, expected = read_npz(tmp_path / "r.npz"), of_dataset(open_source(**npz), network, "an npz")
    assert found["count"] == 50
    for name in ("mean", "cov", "features"):
        assert np.array_equal(found[name], getattr(expected, name))


def command_line(pid):
    with open(f"/proc/{pid}/cmdline") as file:
        return file.read()
