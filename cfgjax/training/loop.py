"""The training loop: everything is built and checked first, then it reads top to bottom."""

import contextlib
import os
import time

import jax

from cfgjax.base.paths import check_path
from cfgjax.base.progress import log
from cfgjax.distributed import collectives as processes
from cfgjax.runs.checkpoint import Checkpoints
from cfgjax.runs.manifest import whole_steps
from cfgjax.runs.workdir import Claim
from cfgjax.runs.writes import SaveError
from cfgjax.training.interrupt import StopRequest, wish_name
from cfgjax.training.log import RunLog, summarise
from cfgjax.training.run import Run


class Diverged(ArithmeticError):
    """Too many steps in a row without a finite loss and gradient."""


def train(config, workdir, stop=None):
    """Trains config's run in workdir, going on where it stopped. True: done. False: asked to stop, and saved.

    stop: a `StopRequest`; one of its own by default. Of several processes all call this, and stop when one is asked to.
    The run is a function of the config alone: stopped and started again at any point it goes through the same
    states and logs the same metrics, bit for bit on the same devices. Raises UsageError for bad input, Diverged, and
    OSError where something cannot be written.
    """
    check_path("workdir", workdir)
    with (
        StopRequest() if stop is None else contextlib.nullcontext(stop) as stop,
        contextlib.closing(Run(config)) as run,
    ):
        if jax.process_count() == 1 and (name := stop.signal):
            log.info("%s: stopped before anything was written to %s; the same command starts again", name, workdir)
            return False
        with contextlib.closing(Claim(workdir, config, run.dataset.hash, run.dataset.classes)) as claim:
            return fit(run, claim, stop)


def fit(run, claim, stop):
    """`train` in a workdir that is ours: restores or creates the state, and runs the loop.

    Raises OSError, naming the newest whole step, where something cannot be written.
    """
    directory = claim.path / "checkpoints"
    try:
        with Checkpoints(directory, run.cadence) as checkpoints:
            restored = checkpoints.restore(run.like)
            state, history = restored or (run.new_state(), [])
            claim.write_config()
            if not restored and run.pace.init_from is not None:
                checkpoints.save(0, state, history)  # what it started from, should that be trained on or gone
            size, step = (run.pace.num_steps, run.pace.batch_size), int(jax.device_get(state.step))
            with contextlib.closing(RunLog(claim.path, step, *size)) as runlog:
                since = f"resumed at step {step}" if restored else "new run"
                runlog.say(f"{claim.path}: {describe(run, state)}, {since}")
                return loop(run, state, history, checkpoints, runlog, claim.path, stop)
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


def loop(run, state, history, checkpoints, runlog, workdir, stop):
    """Steps from state to the end (True) or to a request to stop (False); history: metrics not yet logged."""
    pace, step, together = run.pace, int(jax.device_get(state.step)), jax.process_count() > 1
    watch(run, state, step, workdir, runlog)
    if step >= pace.num_steps:
        runlog.say(f"step {step} of {pace.num_steps}: nothing left to do")
        return True
    with runlog.paused():
        dispatch = compiled(run, state, step, runlog, stop)
    running: list = []  # metrics of the dispatch that the devices may still be at work on
    wish = None  # the signal that any process got before a step whose metrics are known
    while step < pace.num_steps:
        processes.stage(f"step {step}")
        state, metrics = dispatch(state, run.batches(step), run.step_key, run.wishes(stop))
        step += pace.steps_per_dispatch
        if step < pace.num_steps:
            run.look_ahead(step)
        stopping, done = wish if together else stop.signal, step >= pace.num_steps
        fetched, heard = fetch(running)
        history, running, wish = history + fetched, [metrics], wish or heard
        runlog.advance(step)
        checkpoints.check()

        logging_now = step % pace.log_every_steps == 0 or done
        saving_now = step % run.cadence.every_steps == 0 or done or stopping
        if logging_now or saving_now:
            fetched, heard = fetch(running)
            history, running, wish = history + fetched, [], wish or heard
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
            warn_of_slow_save(checkpoints.seconds, runlog)
            runlog.say(f"{stopping}: saved step {step}; the same command resumes")
            return False
        watch(run, state, step, workdir, runlog)
    return True


def warn_of_slow_save(seconds, runlog):
    """Tells where a save took longer than what started the processes gives them between its signal and their end."""
    grace = float(os.environ.get("CFGJAX_GRACE_SECONDS", "inf"))
    if seconds > grace:
        told = f"the last save took {seconds:.0f} s, the time between signal and end is {grace:.0f} s"
        runlog.say(f"warning: {told}: ask the launcher for more, --grace_seconds={2 * seconds:.0f}")


def watch(run, state, step, workdir, runlog):
    """What is drawn or measured at this step, if it has not been done yet."""
    for watcher in run.watchers:
        if step and (step % watcher.every_steps == 0 or step == run.pace.num_steps):
            processes.stage(f"{watcher.section} at step {step}")
            with runlog.paused():
                watcher(state, step, workdir, runlog)


def compiled(run, state, step, runlog, stop):
    """The dispatch, compiled ahead of time."""
    start = time.monotonic()
    processes.stage("compiling")
    k = run.pace.steps_per_dispatch
    runlog.say(f"compiling {f'{k} steps' if k > 1 else 'the step'} of batch {run.pace.batch_size} …")
    dispatch = run.dispatch.lower(state, run.batches(step), run.step_key, run.wishes(stop)).compile()
    runlog.say(f"compiled the step in {time.monotonic() - start:.1f} s")
    return dispatch


def describe(run, state):
    """What is being trained, on what, in a few words."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    devices = f"{run.mesh.size} × {jax.devices()[0].device_kind}"
    if jax.process_count() > 1:
        devices += f" in {jax.process_count()} processes"
    return f"{parameters:,} parameters, {len(run.dataset):,} examples, {devices}"


def fetch(running):
    """([{name: float}] of every step in a list of dispatches' metrics, each {name: [k]}; the signal they carry)"""
    steps, wish = [], None
    for metrics in jax.device_get(running):
        wish = wish_name(metrics.pop("wish", [0])[0])
        length = len(metrics["loss"])
        steps += [{name: float(values[i]) for name, values in metrics.items()} for i in range(length)]
    return steps, wish


def check_finite(history, most, step):
    """Raises Diverged where the loss or gradients were not finite in `most` or more steps in a row."""
    count = int(max((metrics["skipped_in_row"] for metrics in history), default=0))
    if count >= most:
        raise Diverged(
            f"{count} steps in a row before step {step} had a loss or gradient that is not finite and were skipped; "
            f"train.max_skipped_in_row is {most}. In a new workdir, "
            "lower optimizer.learning_rate or set optimizer.clip_norm"
        )
