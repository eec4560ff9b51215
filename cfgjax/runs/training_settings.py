"""The sections of a config about a training run: its optimizer, averages, steps, checkpoints, devices and processes."""

import dataclasses
import numbers
from typing import Annotated

from cfgjax.base.errors import UsageError
from cfgjax.runs.values import (
    BELOW_ONE,
    COUNT,
    TEXT,
    BelowOne,
    Count,
    Kind,
    NotNegative,
    Positive,
    Seconds,
    Text,
    integer,
    real,
    several,
)

ALL_LEFT = Kind("-1 (all remaining)", lambda v: isinstance(v, numbers.Integral) and v == -1, int)
MAX_WIDTH = 12**-0.5  # σ_rel of the plain mean of all steps, γ = 0
AVERAGE_WIDTH = real(f"a number above 0 and at most {MAX_WIDTH:.4f}", lambda v: 0 < v <= MAX_WIDTH)
WIDTH_NAME = "width_"  # names of power-function averages start with it
Devices = Annotated[int, COUNT | ALL_LEFT]


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """config.optimizer: see `make_optimizer`."""

    name: Text
    learning_rate: NotNegative
    b1: BelowOne = 0.9
    b2: BelowOne = 0.999
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.0
    schedule: Text = "constant"
    warmup_steps: Annotated[int, integer(0)] = 0
    decay_steps: Count | None = None
    clip_norm: Positive | None = None


@dataclasses.dataclass(frozen=True)
class EMASettings:
    """config.ema: averages of the parameters.

    rates: of exponential averages. warmup lowers them in the first steps. widths: relative widths σ_rel of
    power-function averages, whose snapshots, every snapshot_every_steps steps (None: checkpoint.every_steps), are all
    retained.
    """

    rates: Annotated[tuple[float, ...], several(BELOW_ONE, "a tuple of numbers in [0, 1)", least=0)]
    warmup: bool = False
    widths: Annotated[tuple[float, ...], several(AVERAGE_WIDTH, f"a tuple, each {AVERAGE_WIDTH.text}", least=0)] = ()
    snapshot_every_steps: Count | None = None

    def __post_init__(self) -> None:
        if self.snapshot_every_steps is not None and not self.widths:
            given = f"ema.snapshot_every_steps is {self.snapshot_every_steps}"
            raise UsageError(f"{given}, but there are no ema.widths; give them, such as (0.05, 0.1)")
        for width in self.widths:
            if (*self.rates, *self.widths).count(width) > 1:
                raise UsageError(f"ema.widths has {width:g}, which occurs twice in ema.widths and ema.rates")

    @property
    def default(self) -> float:
        """The average that is used where none is chosen: the first rate, else the first width, else 0 for none."""
        return next(iter((*self.rates, *self.widths)), 0.0)

    @property
    def default_name(self) -> str | None:
        """The name of the default average in TrainState.ema, None without averages."""
        return self.name(self.default)

    def is_width(self, ema: float) -> bool:
        """Whether `ema` is a width σ_rel of a power-function average. A value in `rates`, or 0, is a rate."""
        return ema not in self.rates and 0 < ema <= MAX_WIDTH

    def name(self, ema: float) -> str | None:
        """Returns the name in TrainState.ema of an average, a value in `rates` or a width; None for 0, no averaging."""
        return f"{WIDTH_NAME if self.is_width(ema) else ''}{float(ema)}" if ema else None

    @property
    def names(self) -> tuple[str, ...]:
        """The names in TrainState.ema of all averages that are tracked."""
        return tuple(dict.fromkeys((*map(str, self.rates), *(f"{WIDTH_NAME}{width}" for width in self.widths))))

    def check(self, ema: float) -> None:
        """Raises UsageError unless `ema` is a rate, 0, or a number that can be a width of this run."""
        if ema in (0, *self.rates) or (self.widths and self.is_width(ema)):
            return
        rates = ", ".join(f"{rate:g}" for rate in (*self.rates, 0))
        stored = f"stored are {', '.join(map('{:g}'.format, self.widths))}" if self.widths else "the run has none"
        width = f"a width ({AVERAGE_WIDTH.text}; {stored})"
        raise UsageError(f"ema {ema:g} is neither a rate of the run ({rates}) nor {width}")


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """config.train: number of steps, batch size, logging interval.

    batch_size: examples per optimizer step, over all devices. num_steps: optimizer steps. steps_per_dispatch: steps
    per call of the compiled program. accumulate_steps: parts in which a step's gradient is computed.
    max_skipped_in_row: non-finite steps in a row after which the run stops. init_from: workdir of a run whose averaged
    parameters this one starts from.
    """

    batch_size: Count
    num_steps: Count
    log_every_steps: Count
    steps_per_dispatch: Count = 1
    accumulate_steps: Count = 1
    max_skipped_in_row: Count = 10
    init_from: Text | None = None


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """config.checkpoint: the run is saved every `every_steps` steps. Retained are the newest `keep_last` checkpoints
    and every step that is a multiple of keep_every_steps.
    """

    every_steps: Count
    keep_last: Count = 3
    keep_every_steps: Count | None = None


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """config.mesh: sizes of the device mesh, see `make_mesh`."""

    data: Devices = -1
    fsdp: Devices = 1
    slices: Count = 1


@dataclasses.dataclass(frozen=True)
class ClusterSettings:
    """config.cluster: how long processes wait for each other.

    timeout_seconds: time within which the death, freeze or failure of a process ends all others.
    start_timeout_seconds: time that the processes wait for each other at the start.
    """

    timeout_seconds: Annotated[float, real("a number of seconds in [2, 10⁹]", lambda v: 2 <= v <= 1e9)] = 60.0
    start_timeout_seconds: Seconds = 300.0


@dataclasses.dataclass(frozen=True)
class StorageSettings:
    """config.storage: workdirs in buckets.

    retry_seconds: how long a server that does not answer, or refuses what it allowed before, is asked again.
    lease_seconds: time without a sign of life after which another process may take over the workdir.
    """

    retry_seconds: Seconds = 600.0
    lease_seconds: Annotated[float, real("a number of seconds in [3, 10⁹]", lambda v: 3 <= v <= 1e9)] = 30.0


@dataclasses.dataclass(frozen=True)
class LogSettings:
    """config.log: where metrics go besides metrics.jsonl.

    writers: names of `training.writers.WRITERS`. project: of Weights & Biases, the experiment of MLflow.
    """

    writers: Annotated[tuple[str, ...], several(TEXT, "a tuple of names of writers", least=0)] = ("tensorboard",)
    project: Text = "cfgjax"
