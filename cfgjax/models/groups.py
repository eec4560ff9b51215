"""Samplers that draw samples in groups, i // group_size, such as the particles of `tilted`."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, Shaped

from cfgjax.base.errors import UsageError
from cfgjax.base.progress import log
from cfgjax.diffusion.guidance import at_zero
from cfgjax.diffusion.samplers import Evaluation
from cfgjax.distributed.sharding import part_of_mesh
from cfgjax.models.binding import check_weight_range, rule_value, with_checked_rows, z_and_x

MAX_ADDED = 0.25  # 3 samples as 4 rows on two cores of a CPU are slower than 3 on one device, which uses both cores


def group_size(sampler: Any) -> int:
    """Returns the number of samples that a sampler draws together; 1 for most samplers."""
    return getattr(sampler, "group_size", 1)


def rule_at_zero(rule: Any, sampler: Any) -> Any:
    """Returns the rule for w = 0 without the branches that it does not need, unless the sampler needs them."""
    return rule if getattr(sampler, "needs_branches", False) else at_zero(rule)


def rule_at(w: float, rule: Any, sampler: Any) -> Any:
    """Returns the rule for samples that all have the weight w: at 0 that of `rule_at_zero`."""
    return rule if w else rule_at_zero(rule, sampler)


def rule_of_samples(model: Any, rule: Any, weights: Float[np.ndarray, " n"], sampler: Any) -> Any:
    """Returns the rule, by default that of config.sample without its null branch if all weights are 0, checked."""
    given = rule_value(model.options.rule if rule is None else rule)
    check_weight_range(given, weights)
    if not weights.any() and (rule is None or not model.has_null_label):
        given = rule_at_zero(given, sampler)
    return with_checked_rows(given, len(weights))


def check_groups(sampler: Any, **rows: Shaped[np.ndarray, "n ..."]) -> None:
    """Raises UsageError unless the samples are complete groups, each with equal rows of every array."""
    size = group_size(sampler)
    for name, values in rows.items():
        check_divisible(f"{len(values)} samples are", len(values), sampler)
        by_group = values.reshape(-1, size, *values.shape[1:])
        if size > 1 and (by_group != by_group[:, :1]).any():
            group = int(np.argmax((by_group != by_group[:, :1]).reshape(len(by_group), -1).any(axis=1)))
            which = f"samples {group * size} … {(group + 1) * size - 1}"
            raise UsageError(f"{which} are a group of {sampler!r} and need equal {name}; repeat each {size} times")


def in_groups(labels: Int[np.ndarray, " k"], num_samples: int, samplers: Sequence[Any]) -> Int[np.ndarray, " n"]:
    """Returns the labels of num_samples samples. They take turns, each for a whole group of every sampler."""
    size = math.lcm(*map(group_size, samplers))
    return np.resize(np.repeat(labels, size), num_samples)


def check_divisible(what: str, number: int, sampler: Any) -> None:
    """Raises UsageError unless number is divisible by the group size. what: its name and verb, such as "x is"."""
    size = group_size(sampler)
    if number % size:
        use = f"{number // size * size} or {number // size * size + size}" if number > size else f"{size}"
        raise UsageError(f"{what} not divisible by the {size} particles of {sampler!r}; use {use}")


def check_count(num_samples: int, samplers: Sequence[Any]) -> None:
    """Raises UsageError unless num_samples samples are complete groups of every sampler."""
    for sampler in samplers:
        check_divisible(f"num_samples {num_samples} is", num_samples, sampler)


def complete_groups(index: Int[np.ndarray, " _n"], sampler: Any) -> Int[np.ndarray, " _m"]:
    """Returns the indices of all samples of the groups in which index has one, in order."""
    size = group_size(sampler)
    return index if size == 1 else (np.unique(index // size)[:, None] * size + np.arange(size)).ravel()


def batch_rows(wanted: int, sampler: Any, devices: int) -> int:
    """Returns the smallest batch of at least `wanted` samples that devices and groups divide."""
    multiple = math.lcm(devices, group_size(sampler))
    return wanted + -wanted % multiple


def batch_mesh(wanted: int, sampler: Any, mesh: Mesh) -> tuple[Mesh, int]:
    """Returns (mesh, number of rows) of a batch of at least `wanted` samples.

    A device has as few rows as possible with at most MAX_ADDED rows for each sample, and no more devices than that
    needs take part: one device for one sample, where other devices would only draw samples that are dropped.
    """
    rows = {count: batch_rows(wanted, sampler, count) for count in range(1, mesh.size + 1)}
    if mesh.shape["fsdp"] > 1 or mesh.is_multi_process:
        return mesh, rows[mesh.size]
    allowed = [count for count in rows if rows[count] <= (1 + MAX_ADDED) * rows[1]]
    count = min(allowed, key=lambda count: rows[count] // count)
    return part_of_mesh(mesh, count), rows[count]


def group_ess(evaluation: Evaluation) -> Float[jax.Array, " b"]:
    """Returns the effective sample size of each sample's group at a level."""
    return evaluation.state.ess


def z_x_and_ess(evaluation: Evaluation) -> tuple:
    """Returns what a `Trajectory` has of a level."""
    return *z_and_x(evaluation), group_ess(evaluation)


def recorded(sampler: Any, trajectory: bool) -> Any:
    """Returns the argument trajectory of `Model.sampler`; samplers with groups always record the effective size."""
    if group_size(sampler) == 1:
        return trajectory
    return z_x_and_ess if trajectory else group_ess


def ungrouped_metrics(samplers: Sequence[Any]) -> dict[str, float]:
    """Returns the effective sample size of samples that are drawn alone, if any of the samplers draws groups."""
    return {"effective_sample_size": 1.0} if any(group_size(sampler) > 1 for sampler in samplers) else {}


def ess_text(ess: Float[np.ndarray, "n t"], sampler: Any) -> str:
    """Returns the effective sample size of the groups, the smallest over the levels. ess: of all samples and levels."""
    least, size = ess.min(axis=1), group_size(sampler)
    return f"mean {least.mean():.3g}, minimum {least.min():.3g} of {size} particles, smallest over the levels"


def log_ess(text: str) -> None:
    """Logs the `ess_text` of samples."""
    log.info("effective sample size of groups: %s", text)
