"""Snapshots of power-function averages through a whole run, from which averages of other widths are made afterwards."""

import logging
from collections.abc import Callable

from cfgjax.base.storage import Place, remove_tree
from cfgjax.distributed import collectives
from cfgjax.runs.checkpoint import set_aside
from cfgjax.runs.manifest import damage, step_directories
from cfgjax.runs.patient_checkpoint import open_checkpoints
from cfgjax.runs.settings import Settings
from cfgjax.runs.training_settings import WIDTH_NAME, CheckpointSettings
from cfgjax.runs.writes import SaveError
from cfgjax.training.state import TrainState

log = logging.getLogger("cfgjax")

RETAIN_ALL = CheckpointSettings(every_steps=1, keep_every_steps=1)


class Snapshots:
    """Writes the averages of config.ema.widths into `<workdir>/snapshots/<step>/`, in the format of checkpoints.

    None is ever pruned. A checkpoint is saved only after all snapshots of earlier steps are complete, and a run that
    resumes at a step writes the snapshot of that step if it is missing. So an interruption loses none.
    """

    def __init__(self, settings: Settings) -> None:
        self._names = [name for name in settings.ema.names if name.startswith(WIDTH_NAME)]
        self._last = settings.train.num_steps
        self._every_steps = settings.ema.snapshot_every_steps or settings.checkpoint.every_steps

    def due(self, step: int) -> bool:
        """Whether a snapshot of this step is stored: at multiples of the interval and at the last step."""
        return bool(self._names and step) and (step % self._every_steps == 0 or step == self._last)

    def save(self, state: TrainState, step: int, workdir: Place, guard: Callable[[], None] = lambda: None) -> None:
        """Writes the snapshot of a step, unless it is complete, and waits until it is. Raises SaveError.

        guard: raises if this process may write no more. No other save may be in progress: Orbax tells the barriers of
        two saves apart by a global counter.
        """
        directory = workdir / "snapshots"
        if collectives.decided(lambda: is_complete(directory, step), f"whether the snapshot of step {step} is there"):
            return
        try:
            with open_checkpoints(directory, RETAIN_ALL, guard) as snapshots:
                averages = {"ema": {name: state.ema[name] for name in self._names}}
                snapshots.save(step, averages, [])
                snapshots.finish(step, averages, [])
        except SaveError as e:
            raise SaveError(f"snapshot of the averages: {e}") from e

    def discard_later(self, workdir: Place, step: int) -> None:
        """Deletes the snapshots of later steps than `step`, at which the run resumes: it writes them again.

        Otherwise a run that resumes from an older checkpoint would mix averages of two trajectories.
        """
        if self._names:
            collectives.decided(lambda: discard(workdir / "snapshots", step), "snapshots of later steps are deleted")


def is_complete(directory: Place, step: int) -> bool:
    """Whether the snapshot of a step is there and matches its manifest. A damaged one is set aside."""
    path = directory / str(step)
    problem = damage(path)
    if problem and path.exists():
        log.warning("the snapshot of step %d is damaged (%s)", step, problem)
        set_aside(directory, [step])
    return not problem


def discard(directory: Place, step: int) -> None:
    """Deletes the steps of a directory that are later than `step`."""
    for later in step_directories(directory):
        if later > step:
            remove_tree(directory / str(later))
