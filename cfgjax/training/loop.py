"""The training loop: everything is built and checked first, then it reads top to bottom."""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from cfgjax.base.compilation import clearing_seconds, compile_in_blocks
from cfgjax.base.freed_memory import keep_freed_memory
from cfgjax.base.lease import NotTaken
from cfgjax.base.paths import check_trainable
from cfgjax.base.progress import log
from cfgjax.base.storage import Place, check_bucket, is_url
from cfgjax.distributed import collectives
from cfgjax.runs.changes import changes_text, check_allowed
from cfgjax.runs.checkpoint import Checkpoints
from cfgjax.runs.manifest import complete_steps
from cfgjax.runs.patient_checkpoint import open_checkpoints
from cfgjax.runs.settings import Settings
from cfgjax.runs.workdir import Claim
from cfgjax.runs.writes import SaveError
from cfgjax.training.extensions import ExtensionError, name_of, naming
from cfgjax.training.interrupt import StopAsked, StopFlag, StopRequest
from cfgjax.training.log import RunLog, summarise
from cfgjax.training.run import Run
from cfgjax.training.state import TrainState
from cfgjax.training.step_metrics import check_finite, fetch

WORTHWHILE_SECONDS = 120  # that a second compilation of the step has to save


class Outcome(NamedTuple):
    """How a run ended.

    done: whether all its steps are trained; otherwise it received a stop signal and was saved. metrics: the newest that
    were logged, with their step.
    """

    done: bool
    metrics: dict[str, float]


def train_until_stopped(
    config: ConfigDict | Settings,
    workdir: str | Place,
    stop: StopFlag | None = None,
    hooks: Iterable[Any] = (),
    writers: Iterable[Any] = (),
    allow_changes: str | Iterable[str] = (),
) -> Outcome:
    """Returns the `Outcome` of training config's run in workdir, which resumes where it stopped.

    stop: by default a new `StopRequest`. allow_changes: keys of the config in which the run may differ from its
    config.json, see `runs.changes`. Every process calls this, and all stop if one receives a stop signal.
    The run is a function of the config alone: stopped and started again at any point, it goes through the same states
    and logs the same metrics, bit for bit on the same devices. Raises UsageError, Diverged, ExtensionError and OSError.
    """
    check_trainable(workdir)
    settings = Settings.from_config(config)
    allowed = check_allowed(allow_changes, settings)
    if is_url(workdir):  # before the data are copied
        collectives.decided(lambda: check_bucket(workdir, f"workdir {workdir}"), "whether the bucket can be written")
    with (
        StopRequest() if stop is None else contextlib.nullcontext(stop) as stop,
        contextlib.closing(Run(settings, hooks=hooks, writers=writers)) as run,
    ):
        try:
            if jax.process_count() == 1 and stop.signal:
                raise NotTaken
            run.check_start(workdir)
            claim = Claim(workdir, settings, run.data_hash, run.dataset.classes, allowed, lambda: bool(stop.signal))
        except NotTaken:
            log.info("%s before anything was written to %s; the same command starts again", stop.signal, workdir)
            return Outcome(False, {"step": 0})
        with contextlib.closing(claim):
            return fit(run, claim, stop)


def fit(run: Run, claim: Claim, stop: StopFlag) -> Outcome:
    """Returns the `Outcome` in a claimed workdir: restores or creates the state, and runs the loop.

    Raises OSError, naming the newest complete step, if something cannot be written.
    """
    directory, pace = claim.path / "checkpoints", run.settings.train
    checkpoints: Checkpoints | None = None
    try:
        with open_checkpoints(directory, run.settings.checkpoint, claim.check) as checkpoints:
            restored = checkpoints.restore(run.like)
            found: tuple[TrainState, Any] = restored or (run.new_state(), [])
            state, history = found
            step = int(jax.device_get(state.step))
            run.check_step(step)
            run.snapshots.discard_later(claim.path, step)
            changes = claim.write_config(step)
            if not restored and pace.init_from is not None:
                checkpoints.save(0, state, history)  # init_from may be trained further or deleted
            with contextlib.closing(RunLog(claim.path, step, run.settings, run.writers, stop, claim.check)) as runlog:
                checkpoints.before_manifest = runlog.flush
                since = f"resumed at step {step}" if restored else "new run"
                runlog.say(f"{claim.path}: {describe(run, state)}, {since}")
                for change in changes:
                    runlog.say(f"changed: {changes_text([change])}")
                done = loop(run, state, history, checkpoints, runlog, claim.path, stop)
                return Outcome(done, runlog.last)
    except OSError as e:
        raise OSError(f"{claim.path}: {first_failure(e)}; {what_is_saved(directory, checkpoints)}") from e


def what_is_saved(directory: Place, checkpoints: Checkpoints | None) -> str:
    """Returns what a message says of the newest complete step. The server of a bucket, which fails, is not asked.

    checkpoints: None if they could not be opened.
    """
    if not is_url(directory):
        step, none = max(complete_steps(directory), default=None), "no step is saved"
    elif checkpoints is None:
        return "its checkpoints could not be read"
    else:
        step, none = checkpoints.newest, "no step is known to be saved"  # by this one of several processes
    return none if step is None else f"step {step} is complete"


def first_failure(error: BaseException) -> BaseException:
    """Returns the failed save among the errors that led to this one: closing files on a full disk fails once more."""
    chain = [error]
    while chain[-1].__context__ is not None:
        chain.append(chain[-1].__context__)
    return next((e for e in chain if isinstance(e, SaveError)), error)


def loop(
    run: Run,
    state: TrainState,
    history: list[dict[str, float]],
    checkpoints: Checkpoints,
    runlog: RunLog,
    workdir: Place,
    stop: StopFlag,
) -> bool:
    """Trains from state to the end (returns True) or to a stop signal (False). history: metrics not yet logged."""
    pace, step, together = run.settings.train, int(jax.device_get(state.step)), jax.process_count() > 1
    take_snapshot(run, state, step, checkpoints, workdir, runlog)
    with saving_first(checkpoints, step, state, history):
        asked = call_hooks(run, state, step, workdir, runlog)
    if asked is not None:
        return stopped(asked, step, state, history, checkpoints, runlog)
    if step >= pace.num_steps:
        runlog.say(f"step {step} of {pace.num_steps}: nothing left to do")
        return True
    with runlog.paused():
        dispatch = compiled(run, state, step, runlog, stop)
    running: list = []  # metrics of the dispatch that the devices may still compute
    signal = None  # received by any process before a step whose metrics are known
    while step < pace.num_steps:
        collectives.stage(f"step {step}")
        state, metrics = dispatch(state, run.batches(step), run.step_key, run.stop_signals(stop))
        step += pace.steps_per_dispatch
        if step < pace.num_steps:
            run.look_ahead(step)
        stopping, done = signal if together else stop.signal, step >= pace.num_steps
        fetched, heard = fetch(running)
        history, running, signal = history + fetched, [metrics], signal or heard
        runlog.advance(step)
        checkpoints.check()

        logging_now = step % pace.log_every_steps == 0 or done
        saving_now = step % run.settings.checkpoint.every_steps == 0 or done or bool(stopping) or checkpoints.owing
        if logging_now or saving_now or due((*run.config_hooks, *run.hooks), run, step):
            fetched, heard = fetch(running)
            history, running, signal = history + fetched, [], signal or heard
        check_finite(history, pace.max_skipped_in_row, step)
        if history and history[-1]["skipped_in_row"] and not (done or stopping):
            saving_now = False  # a run that may be diverging keeps its older checkpoints
        if logging_now:
            logged, history = history, []
            with saving_first(checkpoints, step, state, history):
                runlog.write(step, summarise(logged))
        if saving_now:
            checkpoints.save(step, state, history)
        if stopping:
            return stopped(stopping, step, state, history, checkpoints, runlog)
        if done:
            checkpoints.finish(step, state, history)
        take_snapshot(run, state, step, checkpoints, workdir, runlog)
        with saving_first(checkpoints, step, state, history):
            asked = call_hooks(run, state, step, workdir, runlog)
        if asked is not None:
            return stopped(asked, step, state, history, checkpoints, runlog)
    return True


def stopped(
    signal: str, step: int, state: TrainState, history: list[dict[str, float]], checkpoints: Checkpoints, runlog: RunLog
) -> bool:
    """Saves the step, if it is not saved, at which a stop signal ends the run. Returns False: the run is not done."""
    checkpoints.save(step, state, history)
    checkpoints.finish(step, state, history)
    warn_of_slow_save(checkpoints.seconds, runlog)
    runlog.say(f"{signal}: saved step {step}; the same command resumes")
    return False


@contextlib.contextmanager
def saving_first(
    checkpoints: Checkpoints, step: int, state: TrainState, history: list[dict[str, float]]
) -> Iterator[None]:
    """Context in which an ExtensionError is raised only after the step is saved, which its message then says.

    With several processes nothing is saved: the others do not know of the error.
    """
    try:
        yield
    except ExtensionError as e:
        if jax.process_count() > 1:
            raise
        checkpoints.save(step, state, history)
        checkpoints.finish(step, state, history)
        raise ExtensionError(f"{e}; step {step} is saved") from e.__cause__


def take_snapshot(
    run: Run, state: TrainState, step: int, checkpoints: Checkpoints, workdir: Place, runlog: RunLog
) -> None:
    """Writes the snapshot of the averages if one is due, after the save in progress."""
    if run.snapshots.due(step):
        with runlog.paused():
            checkpoints.wait()
            run.snapshots.save(state, step, workdir, checkpoints.guard)


def warn_of_slow_save(seconds: float, runlog: RunLog) -> None:
    """Warns if a save took longer than the launcher's time between its signal and the end of the processes."""
    grace = float(os.environ.get("CFGJAX_GRACE_SECONDS", "inf"))
    if seconds > grace:
        told = f"the last save took {seconds:.0f} s, but the launcher ends processes {grace:.0f} s after its signal"
        runlog.say(f"warning: {told}: launch with --grace_seconds={2 * seconds:.0f}")


def due(hooks: Iterable[Any], run: Run, step: int) -> list[Any]:
    """Returns those of the hooks of a run that are due at this step."""
    last = run.settings.train.num_steps
    return [hook for hook in hooks if step and (step % hook.every_steps == 0 or step == last)]


def call_hooks(run: Run, state: TrainState, step: int, workdir: Place, runlog: RunLog) -> str | None:
    """Calls the hooks that are due at this step. Returns the name of a stop signal that has ended one of them, or None.

    Raises ExtensionError if one of the caller's fails.
    """
    try:
        for hook in due(run.config_hooks, run, step):
            collectives.stage(f"{hook.section} at step {step}")
            with runlog.paused():
                hook(state, step, workdir, runlog)
        for hook in due(run.hooks, run, step):
            collectives.stage(f"hook {name_of(hook)} at step {step}")
            with runlog.paused(), naming("hook", hook, step):
                hook(state, step, workdir, runlog)
    except StopAsked as e:
        return str(e)
    return None


def compiled(run: Run, state: TrainState, step: int, runlog: RunLog, stop: StopFlag) -> Any:
    """Returns the dispatch, compiled ahead of time."""
    start = time.monotonic()
    collectives.stage("compiling")
    k, batch_size = run.settings.train.steps_per_dispatch, run.settings.train.batch_size
    runlog.say(f"compiling {f'{k} steps' if k > 1 else 'the step'} of batch {batch_size} …")
    lowered = run.dispatch.lower(state, run.batches(step), run.step_key, run.stop_signals(stop))
    dispatch = lowered.compile()
    clearing = clearing_seconds(dispatch, (run.settings.train.num_steps - step) // k)
    if clearing > WORTHWHILE_SECONDS:
        runlog.say(f"compiling again, so that memory is reused, which saves about {clearing / 60:.0f} minutes …")
        dispatch = compile_in_blocks(lowered)
    keep_freed_memory()
    runlog.say(f"compiled the step in {time.monotonic() - start:.1f} s")
    return dispatch


def describe(run: Run, state: TrainState) -> str:
    """Returns the sizes of the network, the data and the mesh in a few words."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    devices = f"{run.mesh.size} × {jax.devices()[0].device_kind}"
    if jax.process_count() > 1:
        devices += f" in {jax.process_count()} processes"
    return f"{parameters:,} parameters, {len(run.dataset):,} examples, {devices}"
