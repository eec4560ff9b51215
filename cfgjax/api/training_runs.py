"""Training from Python: `cfgjax.train(config, workdir)`."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from cfgjax.base.errors import UsageError
from cfgjax.base.storage import Place, place
from cfgjax.data.prepare_own import own_experiment
from cfgjax.distributed.cpu_devices import use_cores
from cfgjax.models.loading import load
from cfgjax.models.model import Model
from cfgjax.runs.config import flatten, load_config
from cfgjax.runs.metrics_file import read_metrics
from cfgjax.runs.settings import Settings
from cfgjax.training.interrupt import StopFlag
from cfgjax.training.loop import train_until_stopped


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A run that `train` returned.

    workdir: its folder. metrics: those that were logged last, {"step": …, "loss": …, …}. done: whether all steps are
    trained; otherwise the run was stopped and saved, and the same call of `train` resumes it.
    """

    workdir: Place
    metrics: dict[str, float]
    done: bool

    @functools.cached_property
    def model(self) -> Model:
        """The `Model` of the newest checkpoint, as `cfgjax.load` returns it."""
        return load(self.workdir)

    @property
    def history(self) -> list[dict[str, float]]:
        """All metrics that were logged, in the order of their steps."""
        return read_metrics(self.workdir, int(self.metrics["step"]))

    def __repr__(self) -> str:
        values = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items() if name in ("step", "loss"))
        return f"TrainedRun({self.workdir}, {values if self.done else f'stopped; logged last: {values}'})"


class LogFunction:
    """A `writers.Writer` that calls a function of the step and the metrics."""

    def __init__(self, function: Callable[[int, Mapping[str, float]], object]) -> None:
        self._function = function
        self.name = f"on_log={getattr(function, '__name__', function)}"

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Calls the function."""
        self._function(step, metrics)


def train(
    config: str | Place | ConfigDict | Settings | None = None,
    workdir: str | Place | None = None,
    *,
    data: str | Place | None = None,
    size: int | None = None,
    labels_from: str | None = None,
    network: str = "small",
    hooks: Iterable[Any] = (),
    writers: Iterable[Any] = (),
    on_log: Callable[[int, Mapping[str, float]], object] | None = None,
    stop: StopFlag | None = None,
    allow_changes: str | Iterable[str] = (),
    **changes: Any,
) -> TrainedRun:
    """Trains a run in workdir, or resumes it where it stopped. Returns the `TrainedRun`.

    config: the name or path of an experiment, or a config that `cfgjax.config` or `cfgjax.load_config` returned.
    workdir: the folder of the run, which is created if it does not exist. data: instead of config, your own images: a
    folder, an .npz file or a prepared data set. A config is chosen for them; with size (height and width in pixels),
    labels_from ("folders", "csv", "edm", "prefixes" or "none") and network ("small" or "large") you can change it.
    changes: new values of an experiment by section, as in `cfgjax.config`. The cores of a CPU then become devices,
    unless the number of devices was set or jax has been used before.

    hooks: called as hook(state, step, workdir, log) with the `TrainState` and the `RunLog`, every `hook.every_steps`
    steps and at the last step. A long one should call log.check_stop() repeatedly: at a stop signal it then ends, the
    step is saved, and the hook is called again when the run resumes. writers: see `writers.Writer`. on_log: called as
    on_log(step, metrics) whenever metrics are logged. stop: an object with the attribute `signal`, None at first; set
    it to a string to save and stop the run.

    allow_changes: keys of the config, such as "optimizer.learning_rate", in which a run may resume with other values.
    They are recorded in <workdir>/changes.json.

    In the main thread Ctrl-C and the stop signals SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 save the run, and `train`
    returns; in another thread use `stop`. If a hook, a writer or on_log raises an error, the run is saved and
    ExtensionError names the function. Raises UsageError for bad input, Diverged if the loss is not finite in too many
    steps in a row, and OSError for failed writes.
    """
    if workdir is None:
        raise UsageError("workdir, the folder of the run, must be given")
    if (config is None) == (data is None):
        which = "neither config nor data is given" if config is None else "config and data are both given"
        raise UsageError(f"{which}; give a config, or data, which are images of your own")
    if data is not None:
        config = own_experiment(data, workdir, size=size, labels_from=labels_from, network=network)
    if isinstance(config, str | Place):
        config = load_config(config, **flatten(changes))
    elif changes:
        what = f"{next(iter(changes))} is given with a config that is already loaded"
        raise UsageError(f"{what}; give it to cfgjax.config, or name the experiment, such as 'digits'")
    listeners = (*writers, *(() if on_log is None else (LogFunction(on_log),)))
    use_cores()
    outcome = train_until_stopped(config, workdir, stop, hooks, listeners, allow_changes)
    return TrainedRun(place(workdir), outcome.metrics, outcome.done)
