"""Samplers that are deterministic where their amount of noise is the Python number 0."""

import dataclasses
from typing import Any

import jax

from cfgjax.diffusion.specs import Spec


def is_zero(amount: Any) -> bool:
    """Returns whether an amount of noise is the Python number 0, which is part of a program and never traced."""
    return isinstance(amount, int | float) and amount == 0


class OptionalNoise(Spec):
    """Base of samplers whose first field is the amount of noise. To be registered by `optional_noise_tree`."""

    @property
    def draws_noise(self) -> bool:
        amount = dataclasses.fields(self)[0].name  # type: ignore[arg-type]
        return not is_zero(getattr(self, amount))


def optional_noise_tree(cls: type) -> type:
    """Returns a dataclass of a sampler, registered as a tree whose fields are data if it `draws_noise`.

    Otherwise, where its first field, the amount of noise, is 0, it has no leaves: a program without noise is compiled
    separately, and the other fields have no effect.
    """
    names = [field.name for field in dataclasses.fields(cls)]

    def flatten(sampler: Any) -> tuple:
        return [getattr(sampler, name) for name in names] if sampler.draws_noise else [], None

    jax.tree_util.register_pytree_node(cls, flatten, lambda _, leaves: cls(*leaves or (0.0,)))
    return cls
