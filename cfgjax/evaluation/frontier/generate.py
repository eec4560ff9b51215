"""Draws N samples. Sample i depends only on the model and (seed, i), not on batch size, devices or processes."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Int, Shaped

from cfgjax.base.errors import UsageError, choose
from cfgjax.base.files import writing
from cfgjax.base.finite import check_finite_samples
from cfgjax.base.storage import Place, place, rename
from cfgjax.data.batches import to_uint8
from cfgjax.distributed.sharding import local_rows
from cfgjax.evaluation.features.hashed import NoHash, read_arrays, write_arrays
from cfgjax.models.binding import sampler_value
from cfgjax.models.cascade import Cascade
from cfgjax.models.groups import batch_rows, check_divisible, complete_groups, group_size, recorded
from cfgjax.models.model import Model
from cfgjax.runs.sample_options import SampleOptions, fields

log = logging.getLogger("cfgjax")

SampleIndices = Int[np.ndarray, " n"]
SampleBatch = tuple[np.ndarray, np.ndarray, np.ndarray]  # (index, labels, samples), with one row for each sample


def balanced(index: SampleIndices, num_classes: int, seed: int) -> SampleIndices:
    """Returns the labels i mod K."""
    return index % num_classes


def random(index: SampleIndices, num_classes: int, seed: int) -> SampleIndices:
    """Returns labels drawn uniformly, which depend on (seed, i) only."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), i), LABEL_STREAM))(index)
    return np.asarray(jax.vmap(lambda key: jax.random.randint(key, (), 0, num_classes))(keys))


LABELS_OF_POLICY = {"balanced": balanced, "random": random}
LABEL_STREAM = 2**32 - 1  # the samplers fold in the step instead, which is always smaller


def rows_per_device(num_samples: int, batch_size: int, num_devices: int) -> int:
    """Returns the samples per call on each device: batch_size, or fewer if all num_samples fit into one call."""
    return min(batch_size, -(-num_samples // num_devices))


def policy_labels(options: SampleOptions, index: SampleIndices, num_classes: int) -> SampleIndices:
    """Returns the labels of samples by the label policy; a sampler that draws groups has a label for each group."""
    make_labels = choose("label policy", options.label_policy, LABELS_OF_POLICY)
    return make_labels(index // group_size(sampler_value(options.sampler)), num_classes, options.seed)


def draw_samples(
    model: Model | Cascade,
    options: SampleOptions,
    index: SampleIndices,
    batch_size: int,
    *,
    num_samples: int | None = None,
    on_ess: Callable[[Float[np.ndarray, " b"]], object] = lambda ess: None,
) -> Iterator[SampleBatch]:
    """Yields (index [b], labels [b], samples [b, …]) for this process's part of each batch.

    index: int [N] of the requested samples. samples: uint8 images, or float32 points. options: a rule has its guide.
    batch_size: samples per call on each device, at most. num_samples: number of all samples, if index has only those
    that are missing: a resumed evaluation then runs the same program as an uninterrupted one.

    If num_samples fill at least one call, the program does not depend on their number, and sample i is the same bit for
    bit. Raises ArithmeticError if a sample is not finite.

    A sampler that draws groups draws all samples of a group of which one is requested, and batches that groups divide.
    on_ess is called before each batch is yielded, with the effective size of each sample's group, the smallest over the
    levels.
    """
    sampler = sampler_value(options.sampler)
    count = len(index) if num_samples is None else num_samples
    check_divisible(f"num_samples {count} is", count, sampler)
    index, kept = complete_groups(index, sampler), recorded(sampler, False)
    draw = model.sampler(**{name: getattr(options, name) for name in fields("Model")}, trajectory=kept)
    size = batch_rows(rows_per_device(count, batch_size, model.mesh.size) * model.mesh.size, sampler, model.mesh.size)
    weights = np.full(size, options.guidance, np.float32)
    running = None  # the batch that the devices compute while the previous one is written
    for start in [*range(0, len(index), size or 1), None]:
        before = running
        if start is not None:
            wanted = index[start : start + size]
            padded = np.resize(wanted, size)
            labels = policy_labels(options, padded, model.num_classes)
            drawn = draw(padded, labels, weights)
            running = wanted, labels, drawn if kept else (drawn, None)
        if before is not None:
            found, found_labels, (x, ess) = before
            part = gathered_part(found, found_labels, x, options.guidance, model.is_image)
            if ess is not None:
                rows, values = local_rows(ess)
                on_ess(values[np.searchsorted(found[rows[rows < len(found)]], part[0])].min(axis=1))
            yield part


def gathered_part(
    wanted: Int[np.ndarray, " _n"], labels: SampleIndices, x: Shaped[Array, "n ..."], weight: float, is_image: bool
) -> SampleBatch:
    """Returns (index, labels, samples) of this process's part of a batch, without the padding after `wanted`."""
    rows, values = local_rows(x)
    keep = rows < len(wanted)
    rows, values = rows[keep], values[keep]
    check_finite_samples(values, wanted[rows], labels[rows], np.full(len(rows), weight))
    return wanted[rows], labels[rows], to_uint8(values) if is_image else values


class SampleStore:
    """The samples of one setting of one model on disk, in shards that are complete or absent.

    folder: for samples of every identity. identity: JSON values that determine the samples. Their digest names the
    subfolder and is part of each shard's hash, so that samples of different models or settings are never mixed.
    """

    def __init__(self, folder: str | Place, identity: dict[str, Any]) -> None:
        text = json.dumps(identity, indent=2, sort_keys=True) + "\n"
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        self.folder = place(folder) / self.digest[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0 and not (self.folder / "setting.json").exists():
            with writing(self.folder / "setting.json") as path:
                path.write_text(text)
        self._shards: dict[Place, np.ndarray] = {}  # path: index [b]
        self._ess: np.ndarray | None = None
        self.rescan()

    def rescan(self) -> None:
        """Finds the shards. A damaged shard is reported and renamed, and its samples count as missing."""
        without_hash = 0
        for path in sorted(set(self.folder.glob("[0-9]*.npz")) - self._shards.keys()):
            try:
                self._shards[path] = self._read(path)["index"]
            except UsageError as e:
                if isinstance(e, NoHash):
                    without_hash += 1
                else:
                    log.warning("%s; its samples are drawn again", e)
                if jax.process_index() == 0:
                    rename(path, f"{path.stem}.damaged")
        if without_hash:
            what = "shards in %s have no hash (older versions wrote none); their samples are drawn again"
            log.warning(f"%d {what}", without_hash, self.folder)

    def _read(self, path: Place) -> dict[str, np.ndarray]:
        """Returns the arrays of a shard. Raises UsageError if it is damaged."""
        shard = read_arrays(path, self.digest)
        lengths = [shard[name].shape[:1] if name in shard else None for name in ("index", "label", "image")]
        if lengths != [shard["index"].shape if "index" in shard else ()] * 3:
            raise UsageError(f"cannot read {path}: it has no index [N] with as many labels and images")
        return shard

    def missing(self, num_samples: int) -> Int[np.ndarray, " m"]:
        """Returns the indices below num_samples that are in no shard."""
        wanted = np.arange(num_samples)
        return np.setdiff1d(wanted, np.concatenate([np.empty(0, int), *self._shards.values()]), assume_unique=False)

    def set_ess(self, ess: Float[np.ndarray, " n"]) -> None:
        """Sets the effective sample size of the samples that are written next, see `draw_samples`."""
        self._ess = ess

    def write(self, index: SampleIndices, label: SampleIndices, image: Shaped[np.ndarray, "n ..."]) -> None:
        """Adds a shard, unless it would be empty."""
        ess, self._ess = self._ess, None
        if not len(index):
            return
        path = self.folder / f"{index[0]:08}-{index[-1]:08}.npz"
        arrays = {"index": index, "label": label.astype(np.int32), "image": image}
        write_arrays(path, arrays if ess is None else arrays | {"ess": ess}, self.digest)
        self._shards[path] = index

    def group_metrics(self) -> dict[str, float]:
        """Returns the mean effective sample size of the groups of all samples, {} for samples that are independent."""
        found = [shard["ess"] for shard in map(self._read, self._shards) if "ess" in shard]
        return {"effective_sample_size": float(np.mean(np.concatenate(found)))} if found else {}

    def remove(self) -> None:
        """Deletes the shards."""
        for path in self._shards:
            path.unlink(missing_ok=True)
        self._shards = {}

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (samples, labels) of the indices start … stop − 1, in order."""
        parts = []
        for path, index in self._shards.items():
            if len(index) and index[0] < stop and index[-1] >= start:
                shard, keep = self._read(path), (index >= start) & (index < stop)
                parts.append((index[keep], shard["image"][keep], shard["label"][keep]))
        found = np.concatenate([np.empty(0, int), *(index for index, _, _ in parts)])
        unique, first = np.unique(found, return_index=True)
        if not len(unique) or len(unique) != stop - start:
            raise UsageError(f"{self.folder} lacks samples of {start} … {stop - 1}; evaluate again")
        _, image, label = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return image[first], label[first]
