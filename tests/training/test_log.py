import json
import os
import signal

import jax
import numpy as np
import pytest
from tiny import mixture_config

from cfgjax.base.errors import UsageError
from cfgjax.base.progress import clock
from cfgjax.runs.settings import Settings
from cfgjax.training.interrupt import StopRequest
from cfgjax.training.log import RunLog, summarise
from cfgjax.training.step_metrics import Diverged, check_finite

SETTINGS = Settings.from_config(mixture_config(**{"train.num_steps": 30}))


def step(loss, cond, uncond, drop_rate, skipped=0.0, in_row=0.0):
    counts = {"skipped": skipped, "skipped_in_row": in_row, "skipped_total": in_row}
    return {"loss": loss, "loss_cond": cond, "loss_uncond": uncond, "drop_rate": drop_rate, **counts}


def test_conditional_and_unconditional_losses_are_weighted_by_their_examples():
    summary = summarise([step(1.0, 1.0, np.nan, 0.0), step(3.0, 2.0, 4.0, 0.5), step(5.0, np.nan, 5.0, 1.0)])
    assert summary["loss"] == 3
    assert np.isclose(summary["loss_cond"], (1.0 * 1.0 + 0.5 * 2.0) / 1.5)
    assert np.isclose(summary["loss_uncond"], (0.5 * 4.0 + 1.0 * 5.0) / 1.5)


def test_skipped_steps_are_counted_and_not_averaged():
    summary = summarise([step(2.0, 2.0, 2.0, 0.5), step(np.nan, np.nan, np.nan, 0.5, skipped=1.0, in_row=1.0)])
    assert (summary["loss"], summary["loss_cond"], summary["skipped_total"]) == (2, 2, 1)


def test_metrics_without_a_value_are_left_out():
    assert "loss_uncond" not in summarise([step(1.0, 1.0, np.nan, 0.0)])
    assert summarise([step(np.nan, np.nan, np.nan, 0.5, 1.0, 4.0)]).keys() == {"skipped_in_row", "skipped_total"}


def test_lines_after_the_restored_step_and_incomplete_lines_are_removed(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": n}) + "\n" for n in (10, 20, 30)) + '{"step": 2')
    with monkeypatch.context() as other:
        other.setattr(jax, "process_index", lambda: 1)
        RunLog(tmp_path, 20, SETTINGS).close()
    assert len(path.read_text().splitlines()) == 4
    log = RunLog(tmp_path, 20, SETTINGS)
    log.close()
    assert path.read_text() == '{"step": 10}\n{"step": 20}\n'
    assert log.has(20, "step")
    assert not log.has(30, "step")


LINES = [json.dumps({"step": n, "loss": 0.5, "é": 1.0}) for n in (10, 10, 20, 30)]
DAMAGED = {
    "a flipped bit": bytes([LINES[1].encode()[0] ^ 1]) + LINES[1].encode()[1:],
    "not UTF-8": b'{"step": 10, "loss": 0.\xb5}',
    "NUL bytes": b"\0" * 30,
    "NUL bytes before a line": b"\0" * 30 + LINES[1].encode(),
    "a string": b'{"step": "10"}',
    "null": b'{"step": null}',
    "a list for a step": b'{"step": [10]}',
    "a boolean": b'{"step": true}',
    "a fraction": b'{"step": 10.5}',
    "negative": b'{"step": -10}',
    "infinite": b'{"step": Infinity}',
    "a step too large for its place": b'{"step": 90}',
    "without a step": b'{"loss": 0.5}',
    "a list": b"[10]",
    "a number": b"10",
    "deep": b"[" * 100_000,
    "deep in a line": b'{"step": 10, "loss": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "digits without end": b'{"step": ' + b"1" * 5000 + b"}",
    "two lines in one": b'{"step": 10}{"step": 10}',
    "a repeated key": b'{"step": 10, "step": 10}',
    "torn": b'{"step": 1',
    "a metric that is null": b'{"step": 10, "loss": null}',
    "a metric that is a string": b'{"step": 10, "loss": "1.0"}',
    "a metric that is a list": b'{"step": 10, "loss": [1.0]}',
    "a metric that is true": b'{"step": 10, "loss": true}',
    "a form feed": b'{"step": \x0c10\x0b}',
}


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_line_is_moved_aside_and_no_other_is_lost(tmp_path, caplog, kind, place):
    lines = [line.encode() for line in LINES[:3]]
    lines.insert(place, DAMAGED[kind])
    path, aside = tmp_path / "metrics.jsonl", tmp_path / "metrics.damaged.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    if place == 3 and kind.startswith("a step too large"):
        return  # the last line is that of a later step
    aside.write_bytes(b"earlier\n")
    for _ in range(2):
        log = RunLog(tmp_path, 20, SETTINGS)
        log.close()
        assert path.read_bytes() == "".join(f"{line}\n" for line in LINES[:3]).encode()
        assert aside.read_bytes() == b"earlier\n" + DAMAGED[kind] + b"\n"
        assert log.has(20, "loss")
    (record,) = caplog.records
    assert "1 damaged line" in record.getMessage() and aside.name in record.getMessage()


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_metrics_that_are_not_a_regular_file_are_reported(tmp_path, make):
    make(tmp_path / "metrics.jsonl")
    with pytest.raises(UsageError, match="metrics.jsonl"):
        RunLog(tmp_path, 20, SETTINGS)


def test_many_damaged_lines_are_counted_in_one_warning(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in DAMAGED.values()) + LINES[0].encode() + b"\n")
    RunLog(tmp_path, 20, SETTINGS).close()
    (record,) = caplog.records
    assert f"{len(DAMAGED)} damaged lines" in record.getMessage()
    assert path.read_text() == LINES[0] + "\n"


def test_too_many_skipped_steps_in_a_row_end_the_run():
    history = [step(1.0, 1.0, 1.0, 0.1, in_row=n) for n in (1.0, 2.0, 3.0, 0.0)]
    check_finite(history, 4, step=9)
    with pytest.raises(Diverged, match="3 steps in a row before step 9"):
        check_finite(history, 3, step=9)


def test_the_first_signal_is_recorded_and_the_second_has_its_previous_effect():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background ignores it
    try:
        with StopRequest() as stop:
            assert stop.signal is None
            signal.raise_signal(signal.SIGINT)
            assert stop.signal == "SIGINT"
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_times_read_as_clocks():
    assert [clock(s) for s in (5, 65, 3_661)] == ["0:05", "1:05", "1:01:01"]
