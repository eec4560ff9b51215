"""The training loop: everything is built and checked first, then it reads top to bottom."""

import contextlib
import dataclasses
import time

import jax
import numpy as np

from cfgjax.config import call, check_sections
from cfgjax.data.batches import batch_at
from cfgjax.data.sources import check_labels, open_source
from cfgjax.diffusion.samplers import SAMPLERS
from cfgjax.diffusion.schedules import SCHEDULES
from cfgjax.errors import UsageError, choose
from cfgjax.evaluation.figures import require_matplotlib, sample_figure
from cfgjax.model import Model, guidance_weights
from cfgjax.network import check_network, init_params, make_network
from cfgjax.sharding import check_batch_size, make_mesh, place_batch, replicated
from cfgjax.training.checkpoint import Cadence, Checkpoints, SaveError, whole_steps
from cfgjax.training.interrupt import StopRequest
from cfgjax.training.log import RunLog, summarise
from cfgjax.training.optim import make_optimizer
from cfgjax.training.state import abstract_state, create_state, make_state
from cfgjax.training.step import make_dispatch, make_train_step
from cfgjax.workdir import Claim


class Diverged(ArithmeticError):
    """Too many steps in a row without a finite loss and gradient."""


@dataclasses.dataclass(frozen=True)
class Pace:
    """config.train: how long, how much at a time, how often it is told.

    batch_size: examples per optimizer step, over all devices. num_steps: optimizer steps. steps_per_dispatch: steps
    per call of the compiled program. accumulate_steps: parts in which a step's gradient is computed.
    max_skipped_in_row: non-finite steps in a row after which the run stops.
    """

    batch_size: int
    num_steps: int
    log_every_steps: int
    steps_per_dispatch: int = 1
    accumulate_steps: int = 1
    max_skipped_in_row: int = 10

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise UsageError(f"train.{name} is {value}; need at least 1")


@dataclasses.dataclass(frozen=True)
class Pictures:
    """config.sample: the sample grids drawn while training, and the defaults of `Model.sample`."""

    every_steps: int
    labels: tuple
    guidance: tuple
    per_cell: int
    num_steps: int
    sampler: str
    v: float
    eta: float

    def __post_init__(self):
        for name, least in {"every_steps": 1, "per_cell": 1, "num_steps": 2}.items():
            if (value := getattr(self, name)) < least:
                raise UsageError(f"sample.{name} is {value}; need at least {least}")
        for name in ("v", "eta"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"sample.{name} is {getattr(self, name)}; need a value in [0, 1]")
        if not self.labels or not self.guidance:
            raise UsageError(f"sample.labels {self.labels} and sample.guidance {self.guidance} must not be empty")
        choose("sampler", self.sampler, SAMPLERS)


@dataclasses.dataclass(frozen=True)
class Averages:
    """config.ema: rates of the averages of the parameters; warmup lowers them in the first steps."""

    rates: tuple
    warmup: bool = False


class Run:
    """Everything a config describes, built and checked against each other before any long work.

    devices: for the mesh; by default all.
    """

    def __init__(self, config, devices=None):
        check_sections(config)
        if not isinstance(config.seed, int) or not 0 <= config.seed < 2**32:
            raise UsageError(f"seed is {config.seed}; need an integer in 0 … 2³²−1")
        self.config = config
        self.pace = call(Pace, "train", config.train)
        self.averages = call(Averages, "ema", config.ema)
        self.pictures = call(Pictures, "sample", config.sample)
        self.cadence = call(Cadence, "checkpoint", config.checkpoint)
        self.mesh = call(make_mesh, "mesh", config.mesh, devices=devices)
        check_batch_size(self.pace.batch_size, self.mesh, self.pace.accumulate_steps)
        self._check_cadence()
        objective = call(check_objective, "diffusion", config.diffusion)
        self.net = make_network(config)
        image_shape = tuple(config.data.image_shape)
        check_network(self.net, image_shape)
        if len(image_shape) != 3:
            require_matplotlib()
        self.optimizer = call(make_optimizer, "optimizer", config.optimizer)
        self.dataset = open_source(**config.data)
        check_labels(np.asarray(self.pictures.labels), config.data.num_classes, "sample.labels entry")
        guidance_weights(self.pictures.guidance, None, len(self.pictures.guidance))

        init_key, self.step_key = jax.random.split(jax.random.key(config.seed))
        self.build_state = make_state(
            lambda: init_params(self.net, init_key, image_shape), self.optimizer, self.averages.rates
        )
        self.like = abstract_state(self.build_state, self.mesh)
        train_step = make_train_step(
            self.net,
            self.optimizer,
            num_classes=config.data.num_classes,
            objective=objective,
            ema_warmup=self.averages.warmup,
            accumulate_steps=self.pace.accumulate_steps,
        )
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.like), replicated(self.mesh)
        self.dispatch = make_dispatch(train_step, shardings)

    def _check_cadence(self):
        """Every cadence is a whole number of dispatches."""
        k = self.pace.steps_per_dispatch
        cadences = {
            "train.num_steps": self.pace.num_steps,
            "train.log_every_steps": self.pace.log_every_steps,
            "checkpoint.every_steps": self.cadence.every_steps,
            "sample.every_steps": self.pictures.every_steps,
        }
        for name, value in cadences.items():
            if value % k:
                use = f"{value // k * k} or {value // k * k + k}" if value > k else f"{k}"
                raise UsageError(f"{name} {value} is not a multiple of train.steps_per_dispatch {k}; use {use}")

    def batches(self, step):
        """The batches of one dispatch from `step` on, [k, B, …] over the mesh."""
        place = {"process": jax.process_index(), "num_processes": jax.process_count()}
        steps = range(step, step + self.pace.steps_per_dispatch)
        parts = [batch_at(self.dataset, self.config.seed, s, self.pace.batch_size, **place) for s in steps]
        return place_batch(self.mesh, jax.tree.map(lambda *arrays: np.stack(arrays), *parts), leading=1)


def check_objective(*, p_uncond, schedule, logsnr_min, logsnr_max):
    """config.diffusion as keyword arguments of `losses.draw`."""
    choose("schedule", schedule, SCHEDULES)
    if not 0 <= p_uncond <= 1:
        raise UsageError(f"diffusion.p_uncond is {p_uncond}; need a probability")
    if not logsnr_min < logsnr_max:
        raise UsageError(f"diffusion.logsnr_min {logsnr_min} is not below diffusion.logsnr_max {logsnr_max}")
    return dict(p_uncond=p_uncond, schedule=schedule, logsnr_min=logsnr_min, logsnr_max=logsnr_max)


def train(config, workdir):
    """Trains config's run in workdir, going on where it stopped. True: done. False: asked to stop, and saved.

    The run is a function of the config alone: stopped and started again at any point it goes through the same
    states and logs the same metrics, bit for bit on the same devices. Raises UsageError for bad input, Diverged, and
    OSError where something cannot be written.
    """
    with StopRequest() as stop:
        run = Run(config)
        claim = Claim(workdir, config)
        try:
            return fit(run, claim, stop)
        finally:
            claim.close()


def fit(run, claim, stop):
    """`train` in a workdir that is ours: restores or creates the state, and runs the loop.

    Raises OSError, naming the newest whole step, where something cannot be written.
    """
    directory = claim.path / "checkpoints"
    try:
        with contextlib.closing(Checkpoints(directory, run.cadence)) as checkpoints:
            restored = checkpoints.restore(run.like)
            state, history = restored or (create_state(run.build_state, run.mesh), [])
            claim.write_config()
            size, first = (run.pace.num_steps, run.pace.batch_size), jax.process_index() == 0
            with contextlib.closing(RunLog(claim.path, int(state.step), *size, write=first)) as runlog:
                since = f"resumed at step {state.step}" if restored else "new run"
                runlog.say(f"{claim.path}: {describe(run, state)}, {since}")
                return loop(run, state, history, checkpoints, runlog, claim.path / "samples", stop)
    except OSError as e:
        whole = max(whole_steps(directory), default=None)
        kept = "no step is saved" if whole is None else f"step {whole} is whole"
        raise OSError(f"{claim.path}: {first_failure(e)}; {kept}") from e


def first_failure(error):
    """The failed save among the errors that led to this one: closing files at a full disk fails once more."""
    chain = [error]
    while chain[-1].__context__ is not None:
        chain.append(chain[-1].__context__)
    return next((e for e in chain if isinstance(e, SaveError)), error)


def loop(run, state, history, checkpoints, runlog, samples, stop):
    """Steps from state to the end (True) or to a request to stop (False); history: metrics not yet logged."""
    pace, step = run.pace, int(state.step)
    model = Model(run.config, None, mesh=run.mesh)
    draw_if_due(run, model, state, step, samples, runlog)
    if step >= pace.num_steps:
        runlog.say(f"step {step} of {pace.num_steps}: nothing left to do")
        return True
    with runlog.paused():
        dispatch = compiled(run, state, step, runlog)
    running: list = []  # metrics of the dispatch that the devices may still be at work on
    while step < pace.num_steps:
        state, metrics = dispatch(state, run.batches(step), run.step_key)
        step += pace.steps_per_dispatch
        history, running = history + fetch(running), [metrics]
        runlog.advance(step)

        stopping, done = stop.signal, step >= pace.num_steps
        logging_now = step % pace.log_every_steps == 0 or done
        saving_now = step % run.cadence.every_steps == 0 or done or stopping
        if logging_now or saving_now:
            history, running = history + fetch(running), []
        check_finite(history, pace.max_skipped_in_row, step)
        if history and history[-1]["skipped_in_row"] and not (done or stopping):
            saving_now = False  # what may be about to diverge does not displace what did not
        if logging_now:
            runlog.write(step, summarise(history))
            history = []
        if saving_now:
            checkpoints.save(step, state, history)
        if stopping:
            checkpoints.wait()
            runlog.say(f"{stopping}: saved step {step}; the same command goes on from there")
            return False
        draw_if_due(run, model, state, step, samples, runlog)
    return True


def compiled(run, state, step, runlog):
    """The dispatch, compiled ahead of time."""
    start = time.monotonic()
    dispatch = run.dispatch.lower(state, run.batches(step), run.step_key).compile()
    runlog.say(f"compiled the step in {time.monotonic() - start:.1f} s")
    return dispatch


def describe(run, state):
    """What is being trained, on what, in a few words."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    devices = f"{run.mesh.size} × {jax.devices()[0].device_kind}"
    return f"{parameters:,} parameters, {len(run.dataset):,} examples, {devices}"


def fetch(running):
    """[{name: float}] of every step in a list of dispatches' metrics, each {name: [k]}."""
    steps = []
    for metrics in jax.device_get(running):
        length = len(metrics["loss"])
        steps += [{name: float(values[i]) for name, values in metrics.items()} for i in range(length)]
    return steps


def check_finite(history, most, step):
    """Raises Diverged where the loss or gradients were not finite in `most` or more steps in a row."""
    count = int(max((metrics["skipped_in_row"] for metrics in history), default=0))
    if count >= most:
        raise Diverged(
            f"{count} steps in a row before step {step} had a loss or gradient that is not finite and were skipped; "
            f"train.max_skipped_in_row is {most}. In a new workdir, "
            "lower optimizer.learning_rate or set optimizer.clip_norm"
        )


def draw_if_due(run, model, state, step, samples, runlog):
    """Writes samples/step_*.png, whole or not at all, where step is one for a picture and it is not there yet."""
    pictures, path = run.pictures, samples / f"step_{step:08}.png"
    due = step % pictures.every_steps == 0 or step == run.pace.num_steps
    if step == 0 or not due or path.exists():
        return
    with runlog.paused():
        model.params = state.ema[next(iter(state.ema))] if state.ema else state.params
        picture = sample_figure(
            model, labels=pictures.labels, guidance=pictures.guidance, per_cell=pictures.per_cell, seed=run.config.seed
        )
        samples.mkdir(exist_ok=True)
        new = path.with_name(f".{path.name}")
        picture.save(new)
        new.replace(path)
        runlog.image(step, "samples", picture)
        runlog.say(f"wrote {path}")
