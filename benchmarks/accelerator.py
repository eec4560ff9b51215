"""Measures everything about one accelerator, in calls of a few minutes that continue one another.

python benchmarks/accelerator.py --parts=a,b --out=accelerator
python benchmarks/accelerator.py --parts=f --cifar=cifar10.npz --train_minutes=30 --out=accelerator
python benchmarks/accelerator.py --tiny --out=tiny

Parts: a ceilings, b training, c training compared with PyTorch, d guided sampling compared with PyTorch, e feature
networks, f CIFAR-10, g memory. In one call a part takes at most --minutes; the same command makes what is left.
Each measurement is a command of another benchmark in its own process. Results are in <out>/part_a.json …, written
after each measurement, and the tables in <out>/accelerator.md.
"""

import sys
import time
import zipfile
from pathlib import Path

import accelerator_parts
import accelerator_records
import accelerator_report
import harness
import peers
from absl import flags

from cfgjax.base.errors import UsageError, choose
from cfgjax.base.exits import DONE, FAILED, PREEMPTED, StopSignal, stop_by_exception, stopped_line
from cfgjax.base.files import check_folder, writing
from cfgjax.base.paths import define_path

LETTERS = list(accelerator_parts.TITLES)
PATIENCE, PATIENT_SECONDS = 3, 540  # a measurement is ended after so many times its estimate, or seconds
NO_DATA = "give --cifar=FILE.npz, with uint8 images `image` and labels `label`"
TOY_IMAGES = 120  # of part f with --tiny and without --cifar


def check(given):
    """Raises UsageError for unknown parts, a folder that cannot be written, and a missing or unsuitable --cifar."""
    for letter in given.parts:
        choose("part", letter, accelerator_parts.TITLES)
    check_folder(given.out, f"--out={given.out}")
    if given.cifar is None:
        return
    need = "need an .npz with uint8 images `image` [N, H, W, 3] and `label` [N]"
    if not Path(given.cifar).is_file():
        raise UsageError(f"--cifar={given.cifar}: there is no such file; {need}")
    try:
        names = {Path(name).stem for name in zipfile.ZipFile(given.cifar).namelist()}
    except (OSError, zipfile.BadZipFile) as e:
        raise UsageError(f"--cifar={given.cifar} is not an .npz; {need}") from e
    if missing := {"image", "label"} - names:
        raise UsageError(f"--cifar={given.cifar} lacks {', '.join(sorted(missing))}; {need}")


def plan_of(given, sizes):
    """Returns {letter: [`Measurement`, …]} of all parts."""
    out, images = Path(given.out).absolute(), given.cifar
    if given.tiny and images is None:
        images = out / "toy.npz"
    runs = out / ("tiny_runs" if given.tiny else "runs")
    cifar = None if images is None else Path(images).absolute()
    return accelerator_parts.plan(sizes, cifar, runs, 0.01 if given.tiny else given.train_minutes)


def write_toy_images(path):
    """Writes random images of ten classes, for a trial of part f without data."""
    import numpy as np

    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (TOY_IMAGES, 8, 8, 3), np.uint8)
    with writing(path) as new:
        np.savez(new, image=image, label=np.arange(TOY_IMAGES, dtype=np.int32) % 10)


def obstacle(measurement, records, made):
    """Returns (state to record or None, why a measurement cannot be made), or None if it can."""
    by_name = {other.name: other for other in made}
    if measurement.contestant and (library := peers.missing(measurement.contestant)):
        return None, f"{library} is not installed"
    if measurement.after and records.state(by_name[measurement.after]) == accelerator_records.NO_MEMORY:
        return accelerator_records.NO_MEMORY, f"as {measurement.after} is"
    for name in measurement.needs:
        if records.state(by_name[name]) != accelerator_records.DONE:
            return None, f"{name} is not complete"
    return None


def run_part(letter, made, records, given):
    """Makes the measurements of a part that are not done, within --minutes. Returns [(name, why it is left), …]."""
    whole = 60 * given.minutes
    end, left = time.monotonic() + whole, []
    if not all(measurement.places for measurement in made if measurement.script == "cifar"):
        return [("all", NO_DATA)] if letter in unfinished({letter: made}, records) else []
    for place, measurement in enumerate(made, 1):
        if records.state(measurement) in accelerator_records.SETTLED and not given.again:
            continue
        if found := obstacle(measurement, records, made):
            state, why = found
            if state:
                records.store(measurement, unmade(measurement, state, why))
            else:
                left.append((measurement.name, why))
            continue
        rest, expected = end - time.monotonic(), records.estimate(measurement, whole)
        if expected > rest:
            what = f"needs about {expected:.0f} s, {max(0, rest):.0f} s of --minutes={given.minutes:g} remain"
            left.append((measurement.name, what))
            continue
        tell(f"{letter} {place}/{len(made)}: {measurement.name} (about {expected:.0f} s)")
        limit = rest if measurement.resumes else min(rest, max(PATIENT_SECONDS, PATIENCE * expected))
        record = accelerator_records.run(measurement, records, limit, whole)
        tell(f"  {record['state']} after {record['seconds']:.0f} s{f': {why}' if (why := record['reason']) else ''}")
        if record["state"] not in accelerator_records.SETTLED:
            left.append((measurement.name, record["reason"] or "it continues in the next call"))
    return left


def unmade(measurement, state, why):
    """Returns the record of a measurement whose result follows from another one."""
    record = {"command": measurement.command, "kind": measurement.kind, "state": state, "reason": why}
    return record | {"seconds": 0.0, "attempts": [], "results": [], "machine": dict.fromkeys(("device", "jax"))}


def tell(line):
    """Prints a line about the progress."""
    print(line, file=sys.stderr, flush=True)


def unfinished(plan, records):
    """Returns the letters of the parts that have a measurement to be made."""
    settled = lambda m: records.state(m) in accelerator_records.SETTLED
    return [letter for letter, made in plan.items() if not all(map(settled, made))]


def run(given):
    """Makes the requested parts and prints the report. Returns FAILED if a measurement fails in this call."""
    check(given)
    sizes = accelerator_parts.TINY if given.tiny else accelerator_parts.FULL
    plan, records = plan_of(given, sizes), accelerator_records.Records(given.out, LETTERS, sizes.environ)
    letters = given.parts or (LETTERS if given.again else unfinished(plan, records))
    stop_by_exception()
    if given.tiny and "f" in letters and given.cifar is None:
        Path(given.out).mkdir(parents=True, exist_ok=True)
        write_toy_images(Path(given.out) / "toy.npz")
    before = failures(plan, records)
    left = {letter: run_part(letter, plan[letter], records, given) for letter in letters}
    lines = accelerator_report.report(plan, records, left)
    Path(given.out).mkdir(parents=True, exist_ok=True)
    with writing(Path(given.out) / "accelerator.md") as new:
        new.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(*lines, "", *accelerator_report.summary(plan, records), sep="\n")
    return FAILED if failures(plan, records) - before else DONE


def failures(plan, records):
    """Returns the set of measurements that failed for another reason than memory."""
    return {m for made in plan.values() for m in made if records.state(m) == accelerator_records.FAILED}


def main(argv):
    """Runs `accelerator.py FLAGS`. Returns the exit code."""
    given = flags.FlagValues()
    what = f"Parts to measure: {', '.join(LETTERS)}; by default all that are not done."
    flags.DEFINE_list("parts", [], what, flag_values=given)
    define_path("out", "accelerator", "Folder for results, logs, caches and runs.", flag_values=given)
    what = "Minutes for each part; measurements that do not fit are left for the next call."
    flags.DEFINE_float("minutes", 9.0, what, flag_values=given, lower_bound=0)
    flags.DEFINE_bool("tiny", False, "Make a measurement of each kind at toy sizes, also on a CPU.", flag_values=given)
    flags.DEFINE_bool("again", False, "Make also the measurements that are done.", flag_values=given)
    define_path("cifar", None, "CIFAR-10 for part f: an .npz with `image` and `label`.", flag_values=given)
    what = "Minutes of training for each p_uncond of part f, over all calls."
    flags.DEFINE_float("train_minutes", 20.0, what, flag_values=given, lower_bound=0)
    try:
        return harness.command(argv, __doc__, given, lambda: run(given))
    except StopSignal as stopped:
        tell(stopped_line(str(stopped)))
        return PREEMPTED


if __name__ == "__main__":
    sys.exit(main(sys.argv))
