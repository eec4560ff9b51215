"""The sections of a config about a training run: its optimizer, averages, steps, checkpoints, devices and processes."""

import dataclasses
import numbers
from typing import Annotated

from cfgjax.runs.values import (
    BELOW_ONE,
    COUNT,
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
    """config.ema: rates of the averages of the parameters. warmup lowers them in the first steps."""

    rates: Annotated[tuple[float, ...], several(BELOW_ONE, "a tuple of numbers in [0, 1)", least=0)]
    warmup: bool = False


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
