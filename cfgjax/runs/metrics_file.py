"""metrics.jsonl of a run: one line of JSON for each logged step, with `step` and the metrics."""

import json
import logging

from cfgjax.base.files import reading, writing
from cfgjax.base.json_files import check_keys, parse_json

log = logging.getLogger("cfgjax")

NAME = "metrics.jsonl"
DAMAGED = "metrics.damaged.jsonl"  # next to it, for lines that cannot be read


def metrics_line(step, metrics):
    """Returns the line for {metric: value} at a step."""
    return json.dumps({"step": step, **metrics}) + "\n"


def step_of(line):
    """Returns the step of a line, bytes, or None if the line is damaged: not JSON, or a metric that is no number."""
    try:
        metrics = parse_json(line, keys={"step": int})
        check_keys(metrics, dict.fromkeys(metrics, float))
    except ValueError:
        return None
    return metrics["step"] if metrics["step"] >= 0 else None


def last_logged_step(workdir):
    """Returns the largest step in the metrics of a run, 0 without any; damaged lines are ignored."""
    return max((step for step in map(step_of, read_lines(workdir / NAME)) if step is not None), default=0)


def read_lines(path):
    """Returns the lines of a file as bytes, without blank ones; [] if there is no file."""
    if not path.exists():
        return []
    with reading(path) as file:
        return [line for line in file.read().split(b"\n") if line.strip()]


def split_lines(workdir, last_step):
    """Returns (lines up to last_step, damaged lines) of the metrics of a run, as bytes. Later steps are left out.

    Steps never decrease: a line of a later step before one of last_step or earlier is damaged.
    """
    lines = read_lines(workdir / NAME)
    steps = [step_of(line) for line in lines]
    kept = [step is not None and step <= last_step for step in steps]
    end = max((i for i, keep in enumerate(kept) if keep), default=-1)
    damaged = [lines[i] for i, step in enumerate(steps) if step is None or (i < end and not kept[i])]
    return [line for line, keep in zip(lines, kept, strict=True) if keep], damaged


def read_metrics(workdir, last_step):
    """Returns [{"step": step, metric: value, …}] of the undamaged lines up to last_step."""
    return [json.loads(line) for line in split_lines(workdir, last_step)[0]]


def rewind(workdir, last_step):
    """Removes the lines of steps after last_step from the metrics of a run, and moves damaged ones to DAMAGED."""
    path = workdir / NAME
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
