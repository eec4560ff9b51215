"""Samples and metrics for every combination of the requested options of sampling.

`samples/<digest>/` in its folder has the shards and the metrics of one setting of one checkpoint, computed only once.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from cfgjax.base.errors import UsageError
from cfgjax.base.storage import Place, free_bytes, place
from cfgjax.data.dataset import Dataset
from cfgjax.distributed import collectives
from cfgjax.evaluation.features.hashed import (
    influences_file,
    is_intact,
    read_arrays,
    read_hashed_metrics,
    write_arrays,
    write_hashed_metrics,
)
from cfgjax.evaluation.features.networks import FeatureNetwork
from cfgjax.evaluation.features.reference import Reference, is_sound, load_reference, of_dataset
from cfgjax.evaluation.frontier.drawing_record import cost_columns, drawing_record
from cfgjax.evaluation.frontier.folder_lock import claim
from cfgjax.evaluation.frontier.frontier_settings import Setting
from cfgjax.evaluation.frontier.generate import SampleStore, draw_samples
from cfgjax.evaluation.frontier.measure import measure_with_influences
from cfgjax.evaluation.frontier.paired import Design, baselines, design, with_changes, with_intervals
from cfgjax.evaluation.metrics import METRICS
from cfgjax.evaluation.metrics.sums import Advance
from cfgjax.evaluation.report.frontier_rows import INFLUENCES, setting_keys
from cfgjax.models.cascade import Cascade, first_stage
from cfgjax.models.groups import check_count, rule_at, ungrouped_metrics
from cfgjax.models.guide import Guide
from cfgjax.models.loading import use_average
from cfgjax.models.model import Model
from cfgjax.models.sample_figures import exact_model, with_networks
from cfgjax.models.weak import WeakRun
from cfgjax.runs.averages import stored_digest
from cfgjax.runs.diffusion_settings import without_later_keys
from cfgjax.runs.sample_options import SampleOptions

PathLike = str | Place

CACHE_FORMAT = 1  # version of the cached files; increase it if the same settings give other samples or metrics


class Stopped(Exception):
    """The evaluation received a stop signal. The samples drawn so far are saved."""


class Frontier:
    """Samples and metrics of a run's model in several settings.

    model: of the run in workdir. batch_size: of the sampler on each device. folder: for samples and metrics, locked
    until `close`. network, judge, neighbours: see `measure`. guide, weak: the `Guide` and the `WeakRun` of the
    settings, or None. upsampler: `Cascade.upsampler_identity` of a cascade, of whose base workdir and settings are.
    Raises UsageError if another process locks the folder.
    """

    def __init__(
        self,
        model: Model | Cascade,
        settings: Sequence[Setting],
        *,
        workdir: PathLike,
        folder: PathLike,
        num_samples: int,
        batch_size: int,
        network: FeatureNetwork,
        judge: FeatureNetwork | None,
        neighbours: bool,
        guide: Guide | None = None,
        weak: WeakRun | None = None,
        upsampler: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.settings, self.num_samples = model, settings, num_samples
        self.network, self.judge, self.neighbours = network, judge, neighbours
        self._workdir, self._folder, self._batch_size = workdir, place(folder), batch_size
        self._guide, self._weak, self._upsampler = guide, weak, upsampler
        self._models: dict[str, Model | Cascade] = {"learned": model}
        check_count(num_samples, [setting.options.sampler for setting in settings])
        if isinstance(model, Model) and any(setting.scores == "exact" for setting in settings):
            self._models["exact"] = exact_model(model)
        if model.step is None:
            raise UsageError("the model has no step; load it from a run with cfgjax.load")
        used = sorted({float(setting.options.ema or 0) for setting in settings})
        self._stored = {ema: stored_digest(workdir, model.settings, model.step, ema) for ema in used}
        self._drawing = drawing_record(model, workdir, guide, weak, upsampler)
        self._lock = claim(self._folder)  # None in all processes but the first
        try:
            self._stores = [SampleStore(self._folder / "samples", self.identity(setting)) for setting in settings]
            collectives.barrier("the frontier's shards are found")
        except BaseException:
            self.close()
            raise

    def identity(self, setting: Setting) -> dict[str, Any]:
        """Returns everything that the samples of a setting depend on, as JSON values."""
        learned = setting.scores == "learned"
        stored = self._stored[float(setting.options.ema or 0)]
        own = {"checkpoint": stored, "step": self.model.step} if learned else {}
        sections = ("data", "diffusion", "model") if learned else ("data", "diffusion")
        config = {name: self.model.settings.given[name] for name in sections}
        config["diffusion"] = without_later_keys(config["diffusion"])
        config |= {} if self._upsampler is None else {"upsampler": self._upsampler}
        return {"format": CACHE_FORMAT, **own, **config, **setting.identity}

    def num_missing(self, reference: Reference) -> int:
        """Returns the number of samples still to be drawn. Raises UsageError if the disk has no space for them."""
        return collectives.decided(lambda: self._missing_in(reference), "how many samples are missing")

    def _missing_in(self, reference: Reference) -> int:
        unknown = [store for store in self._stores if self._cached_metrics(store, reference) is None]
        missing = sum(len(store.missing(self.num_samples)) for store in unknown)
        size = int(np.prod(self.model.image_shape)) * (1 if self.model.is_image else 4)
        needed, free = missing * size / 1e9, free_bytes(self._folder) / 1e9
        if needed > free:
            raise UsageError(
                f"{missing:,} samples need {needed:.3g} GB in {self._folder}, which has {free:.3g} GB free; "
                "draw fewer, or use another folder with --out"
            )
        return missing

    def rows(self, reference: Reference, advance: Advance, check: Callable[[], object]) -> Iterator[dict[str, Any]]:
        """Yields {setting, num_samples, metrics} of each setting in turn.

        advance: called with the size of each batch drawn. check: called between batches and blocks; may raise Stopped.
        """
        ungrouped = ungrouped_metrics([setting.options.sampler for setting in self.settings])
        for setting, store in zip(self.settings, self._stores, strict=True):
            cached = functools.partial(self._cached_metrics, store, reference)
            path, identity = self._influences_file(store, reference)
            if (metrics := collectives.decided(cached, "a setting's metrics")) is None:
                self._draw(setting, store, advance, check)
                metrics, influences = self._measure(store, reference, check)
                metrics = with_intervals(metrics | store.group_metrics(), influences, self._design(setting))
                if jax.process_index() == 0:
                    write_arrays(path, {name: values.astype("f4") for name, values in influences.items()}, identity)
                    write_hashed_metrics(*self._metrics_file(store, reference), metrics)
                collectives.barrier("a setting is measured")
                metrics = collectives.decided(cached, "a setting's metrics")
            file = {INFLUENCES: str(path.relative_to(self._folder))} if self.neighbours else {}
            yield {**self.row(setting), **file, **ungrouped, **metrics}

    def row(self, setting: Setting) -> dict[str, Any]:
        """Returns the columns of a setting."""
        found = cost_columns(self.model, self._options(setting))
        return {**setting.row, "num_samples": self.num_samples, **found}

    def with_changes(
        self, rows: Sequence[dict[str, Any]], reference: Reference, baseline: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Returns the rows of all settings with their differences from a baseline. Called in the first process only.

        baseline: see `paired.baselines`.
        """
        if not self.neighbours:
            return list(rows)
        paths = [self._influences_file(store, reference) for store in self._stores]
        read = functools.lru_cache(maxsize=2)(lambda i: read_arrays(*paths[i]))
        designs = [self._design(setting) for setting in self.settings]
        return with_changes(rows, read, designs.__getitem__, baselines(rows, baseline), setting_keys())

    def _design(self, setting: Setting) -> Design:
        return design(setting.options, self.num_samples, self.model.num_classes)

    def _draw(self, setting: Setting, store: SampleStore, advance: Advance, check: Callable[[], object]) -> None:
        """Draws the samples that the store lacks."""
        missing = collectives.decided(lambda: store.missing(self.num_samples).tolist(), "which samples are missing")
        missing, left = np.array(missing, int), len(missing)
        model = self._loaded(setting) if left else self._models[setting.scores]
        options = self._options(setting)
        options = dataclasses.replace(options, rule=rule_at(options.guidance, options.rule, options.sampler))
        sizes: dict[str, Any] = {"num_samples": self.num_samples, "on_ess": store.set_ess}
        for index, labels, samples in draw_samples(model, options, missing, self._batch_size, **sizes):
            if self._lock is not None:
                self._lock.check()
            store.write(index, labels, samples)
            drawn = min(left, len(index) * jax.process_count())  # no process has more of a batch than the first
            left -= drawn
            advance(drawn)
            check()
        collectives.barrier("a setting is drawn")
        store.rescan()

    def _loaded(self, setting: Setting) -> Model | Cascade:
        """Returns the model of a setting, with the parameters of its average."""
        model = self._models[setting.scores]
        if setting.scores == "learned":
            use_average(first_stage(model), self._workdir, float(setting.options.ema or 0))
        return model

    def _options(self, setting: Setting) -> SampleOptions:
        """Returns the options of a setting, whose rule has its guide and its weak model."""
        return with_networks(setting.options, self._guide, self._weak)

    def prepared(self, setting: Setting) -> tuple[Model, SampleOptions]:
        """Returns (model, options) that draw the samples of a setting."""
        return first_stage(self._loaded(setting)), self._options(setting)

    def _measure(self, store: SampleStore, reference: Reference, check: Callable[[], object]) -> tuple[dict, dict]:
        """Returns (metrics, influences) of a store's samples. check: called after each block."""
        options: dict[str, Any] = {"judge": self.judge, "neighbours": self.neighbours, "advance": lambda _: check()}
        return measure_with_influences(store.read, self.num_samples, self.network, reference, **options)

    def _metrics_file(self, store: SampleStore, reference: Reference) -> tuple[Place, str]:
        """Returns (path, identity) of the metrics of a store's samples. identity: text that they depend on."""
        judge = self.judge.digest if self.judge else ""
        what = [CACHE_FORMAT, self.num_samples, self.network.digest, judge, reference.digest, self.neighbours, *METRICS]
        path = store.folder / f"metrics-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]}.json"
        return path, json.dumps([store.digest, *what])

    def _influences_file(self, store: SampleStore, reference: Reference) -> tuple[Place, str]:
        """Returns (path, identity) of the influences of a store's samples on its metrics."""
        path, identity = self._metrics_file(store, reference)
        return influences_file(path), identity

    def _cached_metrics(self, store: SampleStore, reference: Reference) -> dict[str, Any] | None:
        """Returns the cached metrics of a store's samples, or None. Called in the first process only.

        None also if the samples' influences on them are missing or damaged.
        """
        metrics = read_hashed_metrics(*self._metrics_file(store, reference))
        return metrics if metrics is not None and is_intact(*self._influences_file(store, reference)) else None

    def record(self, reference: Reference) -> dict[str, Any]:
        """Returns what a result records besides its rows, as JSON values."""
        named = lambda network: network and {"name": network.name, "digest": network.digest}
        return {
            "features": named(self.network),
            "judge": named(self.judge),
            "reference": {"digest": reference.digest, "count": reference.count, "origin": reference.origin},
            **self._drawing,
        }

    def remove_samples(self) -> None:
        """Deletes the shards, but not the metrics."""
        for store in self._stores:
            store.remove()

    def close(self) -> None:
        """Releases the folder."""
        if self._lock is not None:
            self._lock.close()


def find_reference(
    path: PathLike | None,
    dataset: Callable[[], Dataset],
    network: FeatureNetwork,
    image_shape: Sequence[int],
    folder: PathLike,
    advance: Advance,
) -> Reference:
    """Returns the `Reference` in the file at path, or by default that of the data set, which is cached in folder.

    dataset: () → a `Dataset`; called only if path is None.
    """
    if path is not None:
        return load_reference(path, network, image_shape, advance)
    data = dataset()
    digest = hashlib.sha256(f"{CACHE_FORMAT} {network.digest}".encode())
    for part in data.content():
        digest.update(part)
    kept = place(folder) / f"reference-{digest.hexdigest()[:16]}.npz"
    if not collectives.decided(lambda: is_sound(kept), "whether the reference exists"):
        reference = of_dataset(data, network, f"the {len(data):,} training examples", advance)
        if jax.process_index() == 0:
            reference.save(kept)
        collectives.barrier("the reference is made")
    return load_reference(kept, network, image_shape)
