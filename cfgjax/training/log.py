"""The log of a run: its metrics to all writers, and progress as lines or a bar."""

import contextlib
import functools
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from cfgjax.base.progress import BAR, clock, make_bar, write_line
from cfgjax.base.storage import Place
from cfgjax.distributed import collectives
from cfgjax.runs import metrics_file
from cfgjax.runs.settings import Settings
from cfgjax.training.extensions import naming
from cfgjax.training.interrupt import StopAsked, StopFlag, signal_name, signal_number
from cfgjax.training.objective import SHARE
from cfgjax.training.writers import open_writers

# Metrics that are averaged over some examples of a step, and the share of these. Other metrics have their share in a
# metric with the suffix SHARE, or a share of 1.
SHARES: dict[str, Callable[[Mapping[str, float]], float]] = {
    "loss_cond": lambda m: 1 - m["drop_rate"],
    "loss_uncond": lambda m: m["drop_rate"],
}
BAR_COLUMNS = 50  # width of BAR at 10⁶ steps, including 15 columns for the bar itself
LAST = ("skipped_in_row", "skipped_total")  # counts; the newest value is logged, not a mean


def summarise(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the means of per-step metrics over the steps that were not skipped.

    Metrics without a value, for example because there was no unconditional example, are left out.
    """
    kept = [m for m in steps if not m["skipped"]]
    summary = {name: steps[-1][name] for name in LAST}
    for name in steps[0].keys() - {"skipped", *LAST}:
        if name.endswith(SHARE):
            continue
        share = SHARES.get(name, functools.partial(share_of, name))
        weight = math.fsum(share(m) for m in kept)
        if weight > 0:
            summary[name] = math.fsum(m[name] * share(m) for m in kept if share(m)) / weight
    return dict(sorted(summary.items()))


def share_of(name: str, metrics: Mapping[str, float]) -> float:
    """Returns the share of a step's examples over which a metric was averaged."""
    return metrics.get(name + SHARE, 1.0)


def fitting(entries: Sequence[str], columns: int) -> str:
    """Returns as many entries as fit into `columns`, joined by commas."""
    text = ""
    for entry in entries:
        longer = f"{text}, {entry}" if text else entry
        if len(longer) > columns:
            break
        text = longer
    return text


class RunLog:
    """Writes the metrics of a run that starts or resumes at start_step, after removing lines of later steps.

    writers: of the caller, in addition to those of every run. stop: of the run, for `check_stop`. guard: raises if
    this process may write no more. `last` has the newest metrics of the training with their step. With several
    processes only the first writes; in the others, only `has`, `last` and `check_stop` have an effect.
    """

    def __init__(
        self,
        workdir: Place,
        start_step: int,
        settings: Settings,
        writers: Sequence[Any] = (),
        stop: StopFlag | None = None,
        guard: Callable[[], None] = lambda: None,
    ) -> None:
        self._stop = stop
        num_steps = self._num_steps = settings.train.num_steps
        self._write, self._batch_size = jax.process_index() == 0, settings.train.batch_size
        self._since = time.monotonic(), start_step
        self._start, self._dispatches = start_step, 0
        read = functools.partial(metrics_file.read_metrics, workdir, start_step)
        self._kept = collectives.decided(read, "the metrics so far")
        first: dict[str, float] = {"step": start_step}
        self.last = next((line for line in reversed(self._kept) if "loss" in line), first)
        if not self._write:
            return
        self._own = open_writers(workdir, start_step, settings, guard)
        self._added = tuple(writers)
        self._bar = make_bar(total=num_steps, initial=start_step, unit="step", bar_format=BAR)

    def check_stop(self) -> None:
        """Raises StopAsked if any process has received a stop signal. Every process calls this, in a long hook.

        The step is then saved, and the hook is called again when the run resumes.
        """
        name = None if self._stop is None else self._stop.signal
        if jax.process_count() > 1:
            parts = collectives.allgather({"signal": signal_number(name)}, "whether a stop signal was received")
            name = signal_name(max(int(part["signal"][0]) for part in parts))
        if name is not None:
            raise StopAsked(name)

    def advance(self, step: int) -> None:
        """Moves the progress bar to a step, of which the last dispatch may still be running. Tells the pace once."""
        if not self._write:
            return
        self._bar.update(step - self._bar.n)
        self._dispatches += 1
        since, first = self._since
        two_are_complete, none_is_logged = self._dispatches == 3, first == self._start
        if two_are_complete and none_is_logged and step < self._num_steps:
            seconds, left = (time.monotonic() - since) / ((step - first) * 2 / 3), self._num_steps - step
            text = f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
            self.say(f"a step takes {text}; the remaining {left:,} steps take about {clock(seconds * left)}")

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Writes metrics at a step to all writers and the terminal, with images/s since the previous call."""
        self.last = {"step": step, **metrics}
        if not self._write:
            return
        now, (then, step_then) = time.monotonic(), self._since
        rate = (step - step_then) * self._batch_size / max(now - then, 1e-9)
        self._since = now, step
        metrics = {**metrics, "images_per_second": round(rate, 1)}
        self._put(step, metrics)
        shown = {"loss": "loss", "loss_cond": "cond", "loss_uncond": "uncond", "accuracy": "accuracy"}
        losses = {short: f"{metrics[name]:.4f}" for name, short in shown.items() if name in metrics}
        if metrics["skipped_total"]:
            losses["skipped"] = f"{metrics['skipped_total']:.0f}"
        if self._bar.disable:
            eta = (self._num_steps - step) * self._batch_size / rate
            values = "  ".join(f"{name} {value}" for name, value in losses.items())
            self.say(f"step {step}/{self._num_steps}  {values}  {rate:,.0f} images/s  ETA {clock(eta)}")
        else:
            entries = [f"{rate:,.0f} images/s", *(f"{name} {value}" for name, value in losses.items())]
            self._bar.set_postfix_str(fitting(entries, shutil.get_terminal_size().columns - BAR_COLUMNS))
        self._extend(step, lambda writer: writer.write(step, metrics))

    def record(self, step: int, metrics: dict[str, float]) -> None:
        """Writes measurements other than those of the training to all writers and the terminal."""
        if self._write:
            self._put(step, metrics)
            self.say(f"step {step}: " + "  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
            self._extend(step, lambda writer: writer.write(step, metrics))

    def has(self, step: int, name: str) -> bool:
        """Returns whether the metrics of a step had this name when the run was resumed."""
        return any(line["step"] == step and name in line for line in self._kept)

    def _put(self, step: int, metrics: dict[str, float]) -> None:
        """Passes metrics to the writers of every run."""
        for writer in self._own:
            writer.write(step, metrics)

    def _extend(self, step: int, use: Callable[[Any], object]) -> None:
        """Calls use(writer) for each writer of the caller. Raises ExtensionError if one fails."""
        for writer in self._added:
            with naming("writer", writer, step):
                use(writer)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time inside the context from images/s, for work that is not training."""
        start = time.monotonic()
        yield
        then, step = self._since
        self._since = then + time.monotonic() - start, step

    def say(self, text: str) -> None:
        """Prints a line, above the progress bar if there is one."""
        if self._write:
            write_line(text)

    def image(self, step: int, name: str, picture: Any) -> None:
        """Passes a picture, uint8 [H, W, C], to the writers that show pictures."""
        if self._write:
            picture = np.asarray(picture)
            for writer in self._own:
                if hasattr(writer, "image"):
                    writer.image(step, name, picture)
            self._extend(step, lambda writer: hasattr(writer, "image") and writer.image(step, name, picture))

    def flush(self) -> None:
        """Sends what the writers of every run hold back. Called in other threads too."""
        if self._write:
            for writer in self._own:
                if hasattr(writer, "flush"):
                    writer.flush()

    def close(self) -> None:
        """Flushes and closes the writers, also if one of them fails."""
        if self._write:
            self._bar.close()
            with contextlib.ExitStack() as last_to_first:
                close = lambda writer: hasattr(writer, "close") and writer.close()
                last_to_first.callback(self._extend, int(self.last["step"]), close)
                for writer in reversed(self._own):
                    last_to_first.callback(close, writer)
