"""metrics.jsonl of a run: one line of JSON for each logged step, with `step` and the metrics."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from cfgjax.base.files import reading, writing
from cfgjax.base.json_files import check_keys, parse_json
from cfgjax.base.storage import Place, is_url, objects

log = logging.getLogger("cfgjax")

METRICS_FILE = "metrics.jsonl"
SEGMENTS = "metrics"  # in a bucket, the folder of files with consecutive lines, each named after its first step
SEGMENT_BYTES = 2**20
DAMAGED = "metrics.damaged.jsonl"  # next to METRICS_FILE, for lines that cannot be read


def metrics_line(step: int, metrics: Mapping[str, float]) -> str:
    """Returns the line of {metric: value} at a step."""
    return json.dumps({"step": step, **metrics}) + "\n"


def step_of(line: bytes) -> int | None:
    """Returns the step of a line, or None if the line is damaged: not JSON, or with a metric that is not a number."""
    try:
        metrics = parse_json(line, keys={"step": int})
        check_keys(metrics, dict.fromkeys(metrics, float))
    except ValueError:
        return None
    return metrics["step"] if metrics["step"] >= 0 else None


def last_logged_step(workdir: Place) -> int:
    """Returns the largest step in the metrics of a run, 0 without any; damaged lines are ignored."""
    return max((step for step in map(step_of, all_lines(workdir)) if step is not None), default=0)


def read_lines(path: Place) -> list[bytes]:
    """Returns the lines of a file as bytes, without blank ones; [] if there is no file."""
    if not path.exists():
        return []
    with reading(path) as file:
        return [line for line in file.read().split(b"\n") if line.strip()]


def all_lines(workdir: Place) -> list[bytes]:
    """Returns the lines of the metrics of a run as bytes, without blank ones."""
    if not is_url(workdir):
        return read_lines(workdir / METRICS_FILE)
    names = sorted(name for name in objects(workdir / SEGMENTS) if name.endswith(".jsonl"))
    return [line for name in names for line in read_lines(workdir / SEGMENTS / name)]


def segment(workdir: Place, step: int) -> Place:
    """Returns the path of the segment whose first line is of a step."""
    return workdir / SEGMENTS / f"{step:012d}.jsonl"


def split_lines(workdir: Place, last_step: float) -> tuple[list[bytes], list[bytes]]:
    """Returns (lines up to last_step, damaged lines) of the metrics of a run, without those of later steps.

    Steps never decrease, so a line of a later step is damaged if one of last_step or earlier follows.
    """
    lines = all_lines(workdir)
    steps = [step_of(line) for line in lines]
    kept = [step is not None and step <= last_step for step in steps]
    end = max((i for i, keep in enumerate(kept) if keep), default=-1)
    damaged = [lines[i] for i, step in enumerate(steps) if step is None or (i < end and not kept[i])]
    return [line for line, keep in zip(lines, kept, strict=True) if keep], damaged


def read_metrics(workdir: Place, last_step: float) -> list[dict[str, Any]]:
    """Returns [{"step": step, metric: value, …}] of the undamaged lines up to last_step."""
    return [json.loads(line) for line in split_lines(workdir, last_step)[0]]


def rewind(workdir: Place, last_step: int) -> None:
    """Removes the lines of steps after last_step from the metrics of a run, and moves damaged ones to DAMAGED."""
    path = workdir / METRICS_FILE
    if is_url(workdir):
        rewind_segments(workdir, last_step)
        return
    if not path.exists():
        return
    lines, damaged = split_lines(workdir, last_step)
    if damaged:
        with open(workdir / DAMAGED, "ab") as file:
            file.writelines(line + b"\n" for line in damaged)
        count = "1 damaged line" if len(damaged) == 1 else f"{len(damaged)} damaged lines"
        log.warning("%s: moved %s to %s", path, count, DAMAGED)
    with writing(path) as new:
        new.write_bytes(b"".join(line + b"\n" for line in lines))


def rewind_segments(workdir: Place, last_step: int) -> None:
    """Removes the lines of steps after last_step from the segments of a run in a bucket."""
    for name in sorted(objects(workdir / SEGMENTS)):
        path = workdir / SEGMENTS / name
        lines = read_lines(path)
        kept = [line for line in lines if (step := step_of(line)) is not None and step <= last_step]
        if not kept:
            path.unlink()
        elif kept != lines:
            path.write_bytes(b"".join(line + b"\n" for line in kept))
