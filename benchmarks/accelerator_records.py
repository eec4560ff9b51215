"""The results of `accelerator.py` on disk, and running one measurement within its time."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from cfgjax.base.errors import one_line
from cfgjax.base.json_files import read_json, write_json

FOLDER = Path(__file__).resolve().parent
DONE, PARTIAL, FAILED, NO_MEMORY, LATE = "done", "partial", "failed", "out of memory", "timed out"
SETTLED = (DONE, FAILED, NO_MEMORY)  # states that a later call does not measure again
OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|OutOfMemory|out of memory|cannot allocate memory", re.IGNORECASE)
KILLED = (-signal.SIGKILL, 256 - signal.SIGKILL, 128 + signal.SIGKILL)  # exit codes of a child, and of its parent
MARGIN = 1.5  # of the time that was too short, for the next attempt
FRESH = 0.9  # share of a part's time; a measurement that gets at least this much and is not done has failed
STOPPING_SECONDS = 45  # for a measurement that resumes: to save after its own limit


class Records:
    """The results in the files part_a.json, part_b.json, … of a folder, each written after every measurement.

    A record is {"command", "state", "reason", "seconds", "attempts", "machine", "results"}. state: "done"; "partial",
    of a measurement that continues; "failed" or "out of memory", which are results too; or "timed out". attempts: the
    seconds that were too short. environ: environment variables of every measurement.
    """

    def __init__(self, folder, letters, environ):
        self.folder, self.environ = Path(folder), environ
        self.parts = {letter: self._read(letter) for letter in letters}

    def _path(self, letter):
        return self.folder / f"part_{letter}.json"

    def _read(self, letter):
        path = self._path(letter)
        remedy = "remove it to measure its part again"
        return read_json(path, keys={"measurements": dict}, remedy=remedy)["measurements"] if path.exists() else {}

    def find(self, measurement):
        """Returns the record of a measurement, or None if it was never made with the same command."""
        record = self.parts[measurement.part].get(measurement.name)
        return record if record and record["command"] == measurement.command else None

    def state(self, measurement):
        """Returns the state of a measurement, or None."""
        record = self.find(measurement)
        return record and record["state"]

    def store(self, measurement, record):
        """Writes the record of a measurement, and with it all others of its part, atomically."""
        part = self.parts[measurement.part]
        part[measurement.name] = record
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self._path(measurement.part), {"part": measurement.part, "measurements": part})

    def estimate(self, measurement, most):
        """Returns the seconds that a measurement is expected to take.

        That is MARGIN times its longest attempt, or a little more than the slowest measurement of its kind that is
        done, at most FRESH of `most`, the seconds of a complete part. Without either it is the measurement's own
        estimate, which is also the least time in which one that resumes makes progress.
        """
        record = self.find(measurement)
        if measurement.resumes:
            return measurement.seconds
        made = [MARGIN * seconds for seconds in record["attempts"]] if record else []
        part = self.parts[measurement.part].values()
        made = made or [1.1 * r["seconds"] for r in part if r["state"] == DONE and r["kind"] == measurement.kind]
        return min(max(made), FRESH * most) if made else measurement.seconds


def run(measurement, records, seconds, whole):
    """Makes a measurement within `seconds` and stores its record. whole: the seconds of a complete part."""
    before = records.find(measurement)
    attempts = before["attempts"] if before else []
    report = records.folder / f"report_{os.getpid()}.json"
    words = [*measurement.words, *measurement.places]
    if measurement.resumes:
        words.append(f"--limit_minutes={max(0, seconds - STOPPING_SECONDS) / 60:.3f}")
    start = time.monotonic()
    code, log = call(measurement, [*words, f"--json={report}"], records, seconds)
    spent = time.monotonic() - start
    found = read_json(report) if code == 0 and report.exists() else {}
    report.unlink(missing_ok=True)
    state, reason = ended(code, found, log)
    if state == LATE:
        reason = f"it takes longer than {spent:.0f} s"
        attempts = [*attempts, spent]
        if seconds >= FRESH * whole:
            state = FAILED
    record = {"command": measurement.command, "kind": measurement.kind, "state": state, "reason": reason}
    record |= {"seconds": spent, "attempts": attempts, "results": found.pop("results", [])}
    record["machine"] = {name: found.get(name) for name in ("device", "num_devices", "jax")}
    records.store(measurement, record)
    return record


def call(measurement, words, records, seconds):
    """Runs the command of a measurement. Returns (exit code, or None after `seconds`; its output).

    Its processes, which are a group, are ended whatever happens.
    """
    logs = records.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    path = logs / f"{measurement.part}_{slug(measurement.name)}.log"
    command = [sys.executable, str(FOLDER / f"{measurement.script}.py"), *words]
    environ = environment(measurement, records)
    with open(path, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environ, process_group=0)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return code, path.read_text(errors="replace")


def slug(name):
    """Returns a name as a part of a file name."""
    return re.sub(r"[^\w.]+", "_", name).strip("_")


def environment(measurement, records):
    """Returns the environment of a measurement: its XLA flags, the caches of programs, and most of a GPU's memory.

    Programs of other XLA flags are cached apart, because the choices of autotuning may depend on the flags.
    """
    cache = (records.folder / "cache").absolute()
    programs = cache / f"jax_{slug(measurement.xla_flags)}".rstrip("_")
    environ = {
        "JAX_COMPILATION_CACHE_DIR": str(programs),  # XLA's autotuning has its cache in it
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95",  # so that the largest batches are those that fit
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
    }
    environ |= records.environ
    given = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {measurement.xla_flags}".strip()}
    return environ | os.environ | {name: value for name, value in given.items() if value}


def ended(code, found, log):
    """Returns (state, reason or None) of a measurement from its exit code, its report and its output."""
    if code is None:
        return LATE, None
    if code == 0:
        rows = found.get("results", [])
        if not rows:
            return FAILED, "it has no results"
        return (DONE if all(row.get("done", True) for row in rows) else PARTIAL), None
    if OUT_OF_MEMORY.search(log):
        return NO_MEMORY, None
    if code in KILLED or "ended with exit code -9" in log:
        return NO_MEMORY, "the process was killed, probably because the host's memory ran out"
    lines = [line.strip() for line in log.splitlines() if line.strip() and "ended with exit code" not in line]
    return FAILED, f"exit code {code}: {one_line(lines[-1], 200) if lines else 'no output'}"
