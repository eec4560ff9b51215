"""Reads the parameters of a run: without averaging, averages of its checkpoints, and averages of any width.

A width that the run did not track is a linear combination of the averages in its snapshots.
"""

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from cfgjax.base.errors import UsageError
from cfgjax.base.finite import check_weights
from cfgjax.base.storage import Place, absolute, place, written_at
from cfgjax.distributed import collectives
from cfgjax.runs.checkpoint import find_step, newest_complete, read_params
from cfgjax.runs.exported import ExportedParameters, exported_parameters, is_exported
from cfgjax.runs.manifest import MANIFEST, damage, manifest_digest, step_directories
from cfgjax.runs.power_averages import MAX_PROFILE_ERROR, combination, supported_widths
from cfgjax.runs.settings import Settings
from cfgjax.runs.training_settings import EMASettings

log = logging.getLogger("cfgjax")

FEW_SNAPSHOTS = 8  # fewer give a warning
SHOWN_STEPS = 8  # in messages


class Part(NamedTuple):
    """An average stored in `<directory>/<step>`, and its weight. name: see `EMASettings.name`."""

    directory: str
    step: int
    name: str | None
    weight: float = 1.0

    def read(self) -> PyTree:
        """Returns the stored parameters as numpy arrays."""
        return read_params(place(self.directory), self.step, self.name)

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest."""
        return manifest_digest(self.directory, self.step)


@dataclasses.dataclass(frozen=True)
class Average:
    """Parameters of a run at a step, as a weighted sum of stored ones.

    ema: a value in config.ema.rates, a width σ_rel, or 0 for the parameters without averaging.
    """

    ema: float
    step: int
    parts: tuple[Part | ExportedParameters, ...]

    def read(self) -> PyTree:
        """Returns the parameters as numpy arrays. Raises UsageError if they are not finite.

        A single part is returned bit for bit. Several are read one at a time and added in float64, which takes 12 bytes
        of memory per parameter.
        """
        first, *others = self.parts
        params = weighted_sum(self.parts) if others else first.read()
        where = first.path if isinstance(first, ExportedParameters) else place(first.directory).parent
        check_weights(params, f"checkpoint step {self.step} of {where}")
        return params

    @property
    def digest(self) -> str:
        """SHA-256 of the files that the parameters are read from; of a single one, that of its manifest."""
        if len(self.parts) == 1:
            return self.parts[0].digest
        found = [(part.name, part.digest) for part in self.parts if isinstance(part, Part)]
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def stored_digest(workdir: str | Place, settings: Settings, step: int, ema: float) -> str:
    """Returns the `Average.digest` of an average of the run in workdir. Raises UsageError as `find_average` does."""
    if settings.ema.is_width(ema) or is_exported(workdir):
        return find_average(workdir, settings, step, ema).digest
    directory = place(workdir) / "checkpoints"
    if not (directory / str(step)).is_dir():
        find_step(directory, step)  # raises
    return manifest_digest(directory, step)


def step_digest(workdir: str | Place, step: int) -> str:
    """Returns the digest of the checkpoint of a step, or of its snapshot if there is no checkpoint."""
    if is_exported(workdir):
        return exported_parameters(workdir, step).digest
    folders = [place(workdir) / name for name in ("checkpoints", "snapshots")]
    return manifest_digest(next(folder for folder in folders if (folder / str(step)).is_dir()), step)


def weighted_sum(parts: Sequence[Any]) -> PyTree:
    """Returns Σ weight · parameters, in the dtypes of the parameters."""
    total, dtypes = None, None
    for part in parts:
        params = part.read()
        if total is None:
            total, dtypes = jax.tree.map(lambda p: np.zeros(p.shape), params), jax.tree.map(lambda p: p.dtype, params)
        jax.tree.map(lambda t, p, weight=part.weight: np.add(t, weight * p.astype(np.float64), out=t), total, params)
        del params  # before the next are read
    return jax.tree.map(lambda t, dtype: t.astype(dtype), total, dtypes)


def load_params(
    workdir: str | Place, settings: Settings, step: int | None = None, ema: float | None = None
) -> tuple[PyTree, int]:
    """Returns (parameters, step) of the run in workdir, with the parameters as numpy arrays. See `find_average`."""
    average = find_average(workdir, settings, step, ema)
    return average.read(), average.step


def find_average(
    workdir: str | Place, settings: Settings, step: int | None = None, ema: float | None = None
) -> Average:
    """Returns the `Average` of the run in workdir.

    ema: a value in config.ema.rates; 0 for the parameters without averaging; otherwise a width σ_rel, which needs
    config.ema.widths. By default the first rate. step: by default that of the newest complete checkpoint; for a width
    also that of a snapshot. workdir may be an exported model, which has one average. Raises UsageError if there is no
    such step or average. Logs a warning if a width is made from few snapshots.
    """
    if is_exported(workdir):
        stored = exported_parameters(workdir, step, ema)
        return Average(stored.ema, stored.step, (stored,))
    ema = settings.ema.default if ema is None else float(ema)
    settings.ema.check(ema)
    directory = str(absolute(workdir) / "checkpoints")
    if directory.startswith("s3://"):
        raise UsageError(
            f"{workdir}: checkpoints are not read from s3://; copy the run to a disk, or export it to s3://"
        )
    if not settings.ema.is_width(ema):
        found = collectives.decided(lambda: find_step(directory, step), f"the step to read in {directory}")
        return Average(ema, found, (Part(directory, found, settings.ema.name(ema)),))
    decide = functools.partial(find_parts, absolute(workdir), settings.ema, step, ema)
    found, parts = collectives.decided(decide, f"the average of width {ema:g}")
    return Average(ema, found, tuple(Part(*part) for part in parts))


def find_parts(workdir: Place, averages: EMASettings, step: int | None, width: float) -> tuple[int, list[Part]]:
    """Returns (step, the stored averages and their weights of which an average of this width consists).

    Only what was stored up to the step is used, so that an average does not change when training continues.
    """
    checkpoints, snapshots = workdir / "checkpoints", workdir / "snapshots"
    taken = step_directories(snapshots)
    if step is None:
        step = find_step(checkpoints) if step_directories(checkpoints) else newest_complete(snapshots, taken)
    exact = averages.name(width) in averages.names
    used = [time for time in sorted(taken) if time == step or (time < step and not exact)]
    times = [time for time in used if is_undamaged(snapshots / str(time))]
    sources = {time: str(snapshots) for time in times}
    if step not in sources:
        sources[step] = str(find_checkpoint(checkpoints, step, times))
    stored = [Part(sources[time], time, str(averages.name(own))) for time in sources for own in averages.widths]
    if exact:
        return step, [part for part in stored if part.name == averages.name(width)]
    profiles = [(float(time), own) for time in sources for own in averages.widths]
    weights, (error,) = combination(profiles, step, np.array([width]))
    if error > MAX_PROFILE_ERROR:
        low, high = supported_widths(profiles, step)
        raise UsageError(
            f"{workdir}: the {len(sources)} snapshots up to step {step} do not support the width {width:g}, whose "
            f"profile would have a relative error of {error:.0%}; they support widths from {low:.3f} to {high:.3f}"
        )
    if len(sources) < FEW_SNAPSHOTS:
        warn_of_few_snapshots(str(workdir), step, width, len(sources), float(error))
    return step, [part._replace(weight=float(x)) for part, x in zip(stored, weights[:, 0], strict=True)]


def find_checkpoint(checkpoints: Place, step: int, times: Sequence[int]) -> Place:
    """Returns the folder of checkpoints, which have the averages of `step` too. Raises UsageError if it does not.

    times: steps of complete snapshots up to there, for the message.
    """
    steps = step_directories(checkpoints)
    if not step or step not in steps:
        saved, taken = (", ".join(map(str, sorted(found)[-SHOWN_STEPS:])) or "none" for found in (steps, times))
        where = f"{checkpoints.parent} has no averages of step {step}"
        raise UsageError(f"{where}; the newest checkpoints are {saved}, the newest snapshots before it {taken}")
    newest_complete(checkpoints, [step])
    return checkpoints


def is_undamaged(snapshot: Place) -> bool:
    """Whether a snapshot matches its manifest. Logs a warning if it does not."""
    return _matches_manifest(snapshot, written_at(snapshot / MANIFEST))


@functools.cache  # since averages of several widths read the same snapshots, each of gigabytes
def _matches_manifest(snapshot: Place, written: int) -> bool:
    """Returns `is_undamaged` of a snapshot whose manifest was written at this time."""
    if problem := damage(snapshot):
        log.warning("%s is damaged (%s); averages are made without it", snapshot, problem)
    return not problem


@functools.cache  # one warning for each average
def warn_of_few_snapshots(workdir: str, step: int, width: float, count: int, error: float) -> None:
    """Logs a warning that a width is approximated from few snapshots."""
    what = "%s: the average of width %g at step %d is made from averages of only %d steps; the relative error of its "
    log.warning(
        f"{what}profile is %.1f %%. It is small with {FEW_SNAPSHOTS} or more", workdir, width, step, count, 100 * error
    )
