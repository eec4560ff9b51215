"""The metrics of the steps of a dispatch, and the end of a run in which they are not finite."""

import jax
from jax import Array

from cfgjax.training.interrupt import signal_name


class Diverged(ArithmeticError):
    """Too many steps in a row without a finite loss and gradient."""


def fetch(running: list[dict[str, Array]]) -> tuple[list[dict[str, float]], str | None]:
    """Returns ([{name: float}] of every step in the metrics of dispatches, each {name: [k]}; the signal they carry)."""
    steps: list[dict[str, float]] = []
    signal = None
    for metrics in jax.device_get(running):
        signal = signal_name(metrics.pop("signal", [0])[0])
        length = len(metrics["loss"])
        steps += [{name: float(values[i]) for name, values in metrics.items()} for i in range(length)]
    return steps, signal


def check_finite(history: list[dict[str, float]], most: int, step: int) -> None:
    """Raises Diverged if the loss or gradients were not finite in `most` or more steps in a row."""
    count = int(max((metrics["skipped_in_row"] for metrics in history), default=0))
    if count >= most:
        raise Diverged(
            f"{count} steps in a row before step {step} had a loss or gradient that is not finite and were skipped; "
            f"train.max_skipped_in_row is {most}. Resume with a lower optimizer.learning_rate and "
            "--allow_changes=optimizer.learning_rate, or set optimizer.clip_norm in a new workdir"
        )
