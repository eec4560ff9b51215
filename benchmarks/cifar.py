"""Trains CIFAR-10 for the minutes given, and measures its frontier over w under a classifier that it trains too.

python benchmarks/cifar.py --data=cifar10.npz --workdir=runs --only=classifier
python benchmarks/cifar.py --data=cifar10.npz --workdir=runs --only=training --p_uncond=0.1,0.2,0.5 --train_minutes=20
python benchmarks/cifar.py --data=cifar10.npz --workdir=runs --only=frontier --p_uncond=0.1,0.2,0.5

The .npz has uint8 images [N, H, W, C] and their labels. Repeating a command continues the same training;
--limit_minutes is the most that one call trains.
"""

import math
import sys
import time
from pathlib import Path

import harness
from absl import flags

from cfgjax.base.errors import UsageError
from cfgjax.base.json_files import read_json, write_json
from cfgjax.base.paths import define_path
from cfgjax.cli.common import numbers
from cfgjax.runs.config import load_file

PARTS = ["classifier", "training", "frontier"]
STOP = "SIGUSR1"  # the stop signal that training reacts to
NEVER = 10**9
QUICK_DENOISER = {
    "model.channels": 32, "model.multipliers": (1,), "model.depth": 1, "model.attention_resolutions": (),
    "model.dtype": "float32", "train.batch_size": 16, "train.log_every_steps": 2, "ema.rates": (0.9,),
}  # fmt: skip
QUICK_CLASSIFIER = {
    "model.channels": 32, "model.multipliers": (1,), "model.num_features": 16, "optimizer.schedule": "constant",
    "optimizer.decay_steps": None, "optimizer.warmup_steps": 0, "train.num_steps": 20, "train.batch_size": 16,
    "train.log_every_steps": 10, "checkpoint.every_steps": 20, "evaluate.every_steps": 20,
}  # fmt: skip


class TimeLimit:
    """A `StopFlag` that stops a run `seconds` after its first steps, or at a deadline; and the hook that times it.

    seen: (time, step) of each call of the hook, of which the first is after compilation. ended: when the run was
    stopped, or None.
    """

    def __init__(self, seconds, deadline, every_steps):
        self.seconds, self.deadline, self.every_steps = seconds, deadline, every_steps
        self.seen, self.ended = [], None

    @property
    def signal(self):
        """The stop signal if the time is up, otherwise None."""
        now = time.monotonic()
        if self.ended is None and (now > self.deadline or (self.seen and now > self.seen[0][0] + self.seconds)):
            self.ended = now
        return None if self.ended is None else STOP

    def __call__(self, state, step, workdir, log):
        """Notes the time of a step."""
        self.seen.append((time.monotonic(), step))

    @property
    def trained_seconds(self):
        """Seconds of training, without compilation and without the last save."""
        return (self.ended or self.seen[-1][0]) - self.seen[0][0] if self.seen else 0.0

    @property
    def steps_per_second(self):
        """Steps per second between the first and the last call of the hook, or None."""
        (start, first), (end, last) = self.seen[:: max(1, len(self.seen) - 1)] if len(self.seen) > 1 else [(0, 0)] * 2
        return (last - first) / (end - start) if end > start else None


def make_config(name, given, quick, **values):
    """Returns the config of an experiment on --data, at a toy size if --quick is given. values: {flat key: value}."""
    from cfgjax.data.sources.arrays import list_arrays

    config, found = load_file(harness.EXPERIMENTS / f"{name}.py"), list_arrays(given.data)
    data = {"source": "npz", "path": given.data, "split": config.data.split, "num_classes": len(found.classes)}
    config.data = type(config.data)(data | {"image_shape": found.image.shape[1:]})
    config.update_from_flattened_dict((quick if given.quick else {}) | values)
    return config


def train_within(config, workdir, given, minutes):
    """Trains for `minutes` in all, over all calls, or as much as --limit_minutes admits. Returns the figures so far.

    The seconds of earlier calls are in <workdir>/benchmark.json.
    """
    import cfgjax
    from cfgjax.runs.manifest import complete_steps

    path = Path(workdir) / "benchmark.json"
    before = read_json(path) if path.exists() else {"trained_seconds": 0.0, "steps": 0}
    about = {"batch_size": config.train.batch_size}
    if before["trained_seconds"] >= 60 * minutes:
        return before | about | {"done": True}
    deadline = time.monotonic() + 60 * given.limit_minutes
    limit = TimeLimit(60 * minutes - before["trained_seconds"], deadline, config.train.log_every_steps)
    run = cfgjax.train(config, workdir, hooks=[limit], stop=limit)
    steps = max(complete_steps(Path(workdir) / "checkpoints"), default=0)
    found = {"trained_seconds": before["trained_seconds"] + limit.trained_seconds, "steps": steps}
    found |= {"steps_per_second": limit.steps_per_second, "loss": run.metrics.get("loss")}
    if steps:
        write_json(path, found)
    return found | about | {"done": run.done or found["trained_seconds"] >= 60 * minutes}


def classifier(given):
    """Returns the figures of training the classifier, and its accuracy on the images that are held out."""
    workdir = f"{given.workdir}/classifier"
    config = make_config("cifar10_classifier", given, QUICK_CLASSIFIER)
    found = train_within(config, workdir, given, math.inf)
    return [found | {"run": "classifier", "accuracy": held_out_accuracy(workdir) if found["done"] else None}]


def held_out_accuracy(workdir):
    """Returns the newest accuracy in the metrics of a classifier's run."""
    from cfgjax.runs.metrics_file import read_metrics

    logged = [row["holdout_accuracy"] for row in read_metrics(Path(workdir), NEVER) if "holdout_accuracy" in row]
    return logged[-1] if logged else None


def training(given):
    """Returns the figures of training with one probability of dropped labels."""
    (p_uncond,) = numbers("p_uncond", given.p_uncond, float)
    values = {"diffusion.p_uncond": p_uncond, "sample.every_steps": NEVER, "checkpoint.every_steps": 20_000}
    values |= {"train.num_steps": NEVER, "checkpoint.keep_every_steps": None, "evaluate.reference": None}
    config = make_config("cifar10", given, QUICK_DENOISER, **values)
    found = train_within(config, run_folder(given, p_uncond), given, given.train_minutes)
    return [found | {"run": f"p_uncond {p_uncond:g}", "p_uncond": p_uncond}]


def run_folder(given, p_uncond):
    """Returns the workdir of the run with this probability."""
    return f"{given.workdir}/p_uncond_{p_uncond:g}"


def frontier(given):
    """Returns a row of metrics for each w of one run, under the features of the classifier."""
    import cfgjax

    (p_uncond,) = numbers("p_uncond", given.p_uncond, float)
    workdir = run_folder(given, p_uncond)
    for folder in (workdir, f"{given.workdir}/classifier"):
        if not Path(folder, "config.json").exists():
            raise UsageError(f"there is no run in {folder}; train it first, by --only=classifier and --only=training")
    result = cfgjax.evaluate(
        workdir,
        guidance=numbers("guidance", given.guidance, float),
        num_samples=given.num_samples,
        batch_size=given.batch_size,
        num_steps=given.num_steps,
        features="classifier",
        classifier=f"{given.workdir}/classifier",
    )
    return [{"p_uncond": p_uncond, "num_samples": given.num_samples} | row for row in result.rows]


TRAINING_COLUMNS = {
    "run": lambda f: f["run"],
    "batch": lambda f: str(f["batch_size"]),
    "steps": lambda f: f"{f['steps']:,}",
    "trained min": lambda f: f"{f['trained_seconds'] / 60:.1f}",
    "steps/s": lambda f: f"{f['steps_per_second']:.1f}" if f.get("steps_per_second") else "-",
    "loss": lambda f: f"{f['loss']:.4f}" if f.get("loss") is not None else "-",
    "accuracy": lambda f: f"{f['accuracy']:.1%}" if f.get("accuracy") is not None else "-",
}
METRICS = ("FD-classifier", "KD-classifier", "IS-classifier", "precision", "recall", "accuracy")
FRONTIER_COLUMNS = {
    "p_uncond": lambda f: f"{f['p_uncond']:g}",
    "w": lambda f: f"{f['guidance_weight']:g}",
    "samples": lambda f: f"{f['num_samples']:,}",
} | {name: lambda f, name=name: f"{f[name]:.4g}" if f.get(name) is not None else "-" for name in METRICS}


def cases(part, axes):
    """Returns the cases of a part: none if --only excludes it, otherwise every combination of the list flags `axes`."""

    def chosen(given):
        if given.data is None or not Path(given.data).is_file():
            raise UsageError(f"--data={given.data}: there is no such file; need an .npz of images and labels")
        numbers("p_uncond", given.p_uncond, float)
        numbers("guidance", given.guidance, float)
        return harness.product(given, *axes) if part in given.only else []

    return chosen


def main(argv):
    """Runs `cifar.py FLAGS`. Returns the exit code."""
    given = flags.FlagValues()
    flags.DEFINE_multi_enum("only", PARTS, PARTS, "A part to run; repeatable. All by default.", flag_values=given)
    define_path("data", None, "An .npz of uint8 images [N, H, W, C] and labels [N].", flag_values=given)
    define_path("workdir", "runs", "Folder of the runs.", flag_values=given)
    flags.DEFINE_list("p_uncond", ["0.1", "0.2", "0.5"], "Probabilities of dropped labels.", flag_values=given)
    flags.DEFINE_list("guidance", ["0", "0.2", "0.5", "1", "2", "4"], "Weights w.", flag_values=given)
    flags.DEFINE_integer("num_samples", 10_000, "Samples for each w.", flag_values=given, lower_bound=2)
    flags.DEFINE_integer("num_steps", None, "Levels T; by default the experiment's.", flag_values=given, lower_bound=2)
    number = lambda name, default, what: flags.DEFINE_float(name, default, what, flag_values=given, lower_bound=0)
    number("train_minutes", 20.0, "Minutes of training for each probability, over all calls.")
    number("limit_minutes", math.inf, "Minutes after which this call stops training, including compilation.")
    flags.DEFINE_bool("quick", False, "Networks and steps of toy sizes.", flag_values=given)
    tables = {
        "classifier": harness.Table(cases("classifier", ()), classifier, TRAINING_COLUMNS),
        "training": harness.Table(cases("training", ("p_uncond",)), training, TRAINING_COLUMNS),
        "frontier": harness.Table(cases("frontier", ("p_uncond",)), frontier, FRONTIER_COLUMNS),
    }
    return harness.main(argv, __doc__, given, tables, configs=[])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
