"""Checks of what guidance rules and samplers return. They run while a program is traced and cost nothing afterwards."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cfgjax.base.errors import UsageError, one_line
from cfgjax.diffusion.prediction import Prediction

LONGEST = 200  # characters of a description


class ContractError(UsageError):
    """A rule or sampler returned a value of the wrong kind, shape or dtype.

    kind: "rule", "sampler", "denoiser" or "parametrisation".
    """

    def __init__(self, kind: str, value: Any, problem: str) -> None:
        super().__init__(f"{kind} {value!r} {problem}")
        self.kind, self.problem = kind, problem


@contextlib.contextmanager
def naming_values(**values: Any) -> Iterator[None]:
    """Raises ContractErrors with these values instead of traced ones, whose numbers cannot be shown."""
    try:
        yield
    except ContractError as e:
        if e.kind not in values:
            raise
        raise ContractError(e.kind, values[e.kind], e.problem) from None


def described(value: Any) -> str:
    """Returns the structure of a tree with the dtypes and shapes of its arrays, such as "(float32[8,2], int32[])"."""
    return one_line(_described(value), LONGEST)


def _described(value: Any) -> str:
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        fields = [f"{name}={_described(part)}" for name, part in value._asdict().items() if part is not None]
        return f"{type(value).__name__}({', '.join(fields)})"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_described, value))}{',' * (len(value) == 1)})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_described(part)}' for key, part in value.items())}}}"
    if value is None or isinstance(value, str | bool | int | float):
        return repr(value)
    aval = _abstract(value)
    return type(value).__name__ if aval is None else f"{aval.dtype}[{','.join(map(str, aval.shape))}]"


def _abstract(value: Any) -> Any:
    """Returns the shape and dtype of value as jax sees it, or None if it is no array."""
    try:
        return jax.typeof(value)
    except TypeError:
        return None


def check_prediction(kind: str, value: Any, found: Any, z: Float[Array, "b ..."]) -> None:
    """Raises ContractError unless found, returned for z, is a `Prediction` of z's shape and dtype."""
    like = (jnp.shape(z), z.dtype)

    def fits(part: Any) -> bool:
        aval = _abstract(part)
        return aval is not None and (aval.shape, aval.dtype) == like

    parts = found if isinstance(found, Prediction) else (None,)
    if not all(fits(part) for part in parts[:2]) or not all(part is None or fits(part) for part in parts[2:]):
        raise ContractError(kind, value, f"returns {described(found)}; need {described(Prediction(z, z))}")


def check_arrays(kind: str, value: Any, what: str, initial: Any) -> None:
    """Raises ContractError unless initial, a memory or state before the first level, is a tree of arrays."""
    if any(_abstract(leaf) is None for leaf in jax.tree.leaves(initial)):
        raise ContractError(kind, value, f"starts with the {what} {described(initial)}; need a tree of arrays")


def check_same(kind: str, value: Any, what: str, before: Any, after: Any) -> None:
    """Raises ContractError unless after has the structure, shapes and dtypes of before; weak types may be promoted."""
    same_structure = jax.tree.structure(before) == jax.tree.structure(after)  # type: ignore[operator]
    if not same_structure or not all(map(_same, jax.tree.leaves(before), jax.tree.leaves(after))):
        need = "need the same structure, shapes and dtypes at every level"
        raise ContractError(kind, value, f"changes its {what} from {described(before)} to {described(after)}; {need}")


def _same(before: Any, after: Any) -> bool:
    old, new = _abstract(before), _abstract(after)
    if old is None or new is None or old.shape != new.shape:
        return False
    return old.dtype == new.dtype or (old.weak_type and jnp.promote_types(old.dtype, new.dtype) == new.dtype)
