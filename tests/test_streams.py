"""Output that cannot be written, and signals that arrive more than once."""

import errno
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from command import ROOT, end_all, finish, finish_all, run, start, start_several
from disks import small_disk
from test_cli import metrics, train, wait_for_step
from tiny import mixture_config

from cfgjax.base import exits, streams
from cfgjax.base.progress import write_line
from cfgjax.runs.manifest import complete_steps
from cfgjax.runs.settings import Settings
from cfgjax.training.log import RunLog
from cfgjax.training.writers import event_file
from cfgjax.training.writers.tensorboard import TensorBoard

FULL = "/dev/full"  # every write to it fails, as on a full disk
SETTINGS = Settings.from_config(mixture_config())
needs_full = pytest.mark.skipif(not Path(FULL).exists(), reason=f"needs {FULL}")


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    yield
    end_all()


def log_stream(number, **options):
    return io.TextIOWrapper(io.BufferedWriter(streams.LogFile(number)), **options)


def test_a_reader_who_has_gone_is_no_failure():
    reading, writing = os.pipe()
    os.close(reading)
    stream = log_stream(writing)
    print("x" * 100_000, file=stream, flush=True)
    assert stream.buffer.raw.failure is None
    os.close(writing)


@needs_full
def test_a_full_disk_is_remembered():
    number = os.open(FULL, os.O_WRONLY)
    stream = log_stream(number)
    print("x" * 100_000, file=stream, flush=True)
    assert stream.buffer.raw.failure.errno == errno.ENOSPC
    os.close(number)


def test_a_gap_in_a_log_is_marked_once_there_is_space(tmp_path, monkeypatch):
    number, write, full = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT), os.write, [False]

    def limited(to, data):
        if to == number and full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(to, data[:3])

    monkeypatch.setattr(os, "write", limited)
    stream = log_stream(number, encoding="utf-8")
    for text, is_full in [("one", False), ("two", True), ("three", True), ("four", False)]:
        full[0] = is_full
        print(text, file=stream, flush=True)
    assert (tmp_path / "log").read_text() == "one\n\n… 2 lines could not be written …\nfour\n"
    os.close(number)


class Broken(io.StringIO):
    """A stream that cannot be written."""

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    def flush(self):
        self.write("")


def test_lines_of_a_run_in_python_are_dropped_if_they_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Broken())
    write_line("a line")
    log = RunLog(tmp_path, 0, SETTINGS)
    log.say("a line")
    monkeypatch.undo()
    log.close()


def test_events_are_written_in_order_once_there_is_space(tmp_path, monkeypatch, caplog):
    write, full = os.write, [True]

    def limited(number, data):
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(number, bytes(data[:5000]))

    file = event_file.EventFile(str(tmp_path / "events"))
    parts = [bytes([i]) * 3000 for i in range(20)]
    monkeypatch.setattr(os, "write", limited)
    for i, part in enumerate(parts):
        full[0] = i < 15
        file.write(part)
    file.close()
    monkeypatch.undo()
    assert (tmp_path / "events").read_bytes() == b"".join(parts)
    assert len(caplog.messages) == 1 and "training goes on" in caplog.messages[0]


def test_a_full_disk_under_tensorboard_neither_ends_nor_stops_training(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(event_file.os, "fsync", lambda number: exec("raise OSError(28, 'No space left on device')"))
    monkeypatch.setattr(event_file, "MAX_WAITING_BYTES", 1000)
    writer = TensorBoard(tmp_path, 0, SETTINGS)

    def write_all():
        for step in range(500):
            writer.write(step, {"loss": 1.0, "grad_norm": 2.0})
        writer.close()

    thread = threading.Thread(target=write_all, daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert sum("cannot be written" in message for message in caplog.messages) == 1


def handled(handler):
    """The stop signals for which `install` sets a handler. All are put back."""
    before = {number: signal.getsignal(number) for number in exits.STOP_SIGNALS}
    try:
        return set(exits.install(handler))
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def test_a_hangup_that_nohup_ignores_remains_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert handled(signal.SIG_DFL) == {*exits.STOP_SIGNALS} - {signal.SIGHUP}
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert handled(signal.SIG_DFL) == {*exits.STOP_SIGNALS}
    finally:
        signal.signal(signal.SIGHUP, before)


def first_line(command):
    """(exit code, stderr) of `cfgjax COMMAND | head -1`."""
    process = start(command)
    assert process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    return finish(process)[::2]


@pytest.mark.e2e
def test_training_goes_on_if_its_reader_has_gone(tmp_path):
    code, err = first_line(train(tmp_path / "run", 1000))
    assert (code, err) == (0, "")
    assert metrics(tmp_path / "run")[-1]["step"] == 1000
    assert first_line("train --help") == (0, "")
    assert first_line("--help") == (0, "")
    code, err = first_line(f"evaluate --workdir={tmp_path}/run --num_samples=60 --num_steps=4 --guidance=0,1")
    assert (code, err) == (0, "")
    assert (tmp_path / "run" / "evaluation" / "frontier.json").exists()


@pytest.mark.e2e
def test_training_goes_on_if_standard_output_is_closed_and_no_file_takes_its_place(tmp_path):
    environ = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    command = f"exec {sys.executable} -m cfgjax {train(tmp_path / 'run', 200)} >&- 2>&-"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, env=environ, capture_output=True)
    assert done.returncode == 0
    assert metrics(tmp_path / "run")[-1]["step"] == 200
    assert complete_steps(tmp_path / "run" / "checkpoints")


@pytest.mark.e2e
def test_a_full_disk_under_the_log_ends_no_command(tmp_path):
    disk = tmp_path / "disk"
    with small_disk(disk, "16k"):
        (disk / "filler").write_bytes(b"x" * 4096 * 3)
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (40, 8, 8, 1), np.uint8)
        np.savez(tmp_path / "data.npz", image=images, label=np.arange(40) % 4)
        commands = [
            f"{train(tmp_path / 'run', 2000)} --config.train.log_every_steps=5",
            f"evaluate --workdir={tmp_path}/run --num_samples=60 --num_steps=4 --guidance=0,1",
            f"prepare npz {tmp_path}/data.npz {tmp_path}/prepared --size=8",
        ]
        for number, command in enumerate(commands):
            with open(disk / f"log{number}", "w") as log:
                assert start(command, stdout=log, stderr=log).wait(timeout=300) == 0, command
        assert sum(path.stat().st_size for path in disk.glob("log*")) <= 4096
        assert metrics(tmp_path / "run")[-1]["step"] == 2000
        assert (tmp_path / "run" / "evaluation" / "frontier.json").exists()
        assert (tmp_path / "prepared" / "dataset.json").exists()


@needs_full
@pytest.mark.e2e
@pytest.mark.parametrize("words", ["doctor", "train --help", "train --config=digits --print_config"])
def test_a_command_whose_result_is_its_output_fails_if_that_is_lost(words):
    with open(FULL, "w") as full:
        code, _, err = finish(start(words, stdout=full))
    assert code == 1
    assert err.splitlines()[-1] == "cfgjax: failed: the output cannot be written: No space left on device"


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
def test_signals_that_are_repeated_during_a_save_neither_end_nor_damage_it(number, tmp_path):
    workdir = tmp_path / "run"
    process = start(train(workdir, 10**6))
    wait_for_step(workdir, 50)
    process.send_signal(number)
    while process.poll() is None:
        time.sleep(0.005)
        for again in (signal.SIGTERM, number):
            process.send_signal(again)
    code, out, err = finish(process)
    assert code == 75, err
    saved = re.findall(r"saved step (\d+); the same command resumes", out)
    assert [int(step) for step in saved] == [max(complete_steps(workdir / "checkpoints"))]
    process = start(train(workdir, int(saved[0]) + 50))
    code, out, err = finish(process)
    assert code == 0 and f"resumed at step {saved[0]}" in out, err


@pytest.mark.e2e
def test_training_under_nohup_outlives_its_terminal(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does; processes inherit it
    try:
        process = start(train(tmp_path / "run", 10**6))
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for_step(tmp_path / "run", 50)
    process.send_signal(signal.SIGHUP)
    wait_for_step(tmp_path / "run", metrics(tmp_path / "run")[-1]["step"] + 200)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 75


@pytest.mark.e2e
def test_several_processes_save_one_step_whatever_signals_they_get_meanwhile(tmp_path):
    workdir = tmp_path / "run"
    processes = start_several(train(workdir, 10**6), 2)
    wait_for_step(workdir, 50)
    processes[1].send_signal(signal.SIGHUP)
    time.sleep(0.02)
    while any(process.poll() is None for process in processes):
        for process in processes:
            process.send_signal(signal.SIGTERM)
        time.sleep(0.01)
    ends = finish_all(processes)
    assert [code for code, _, _ in ends] == [75, 75], ends
    (saved,) = re.findall(r"saved step (\d+)", ends[0][1])
    assert max(complete_steps(workdir / "checkpoints")) == int(saved)
    code, out, err = run(train(workdir, int(saved) + 50))
    assert code == 0 and f"resumed at step {saved}" in out, err
