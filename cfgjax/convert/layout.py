"""Loads and saves parameters as PyTorch state dicts, given a table of keys and layouts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, PyTree, Shaped
from numpy.typing import ArrayLike

from cfgjax.base.errors import UsageError, one_line
from cfgjax.base.finite import count_not_finite
from cfgjax.nets import NoisyClassifier, UNet

MOST_NAMED = 10  # keys in an error

Convertible = UNet | NoisyClassifier
LeafPath = tuple[str, ...]  # ("block", "layer", "kernel")


class Slot(NamedTuple):
    """Position of a parameter in a PyTorch state dict.

    keys: of arrays that are concatenated along their first axis. ones: number of trailing axes of length one of a
    matrix; such an array is a convolution of width one in PyTorch and a dense layer in cfgjax.
    """

    keys: tuple[str, ...]
    ones: int = 0


SlotOf = Callable[[LeafPath], Slot]


def to_theirs(path: LeafPath, array: Shaped[np.ndarray, "..."], ones: int = 0) -> Shaped[np.ndarray, "..."]:
    """Returns a view in PyTorch's layout: HWIO → OIHW, kernel [in, out] → [out, in, 1…], position [N, C] → [C, N]."""
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    return array.T[(..., *[None] * ones)] if path[-1] in ("kernel", "position") else array


def to_ours(path: LeafPath, array: Shaped[np.ndarray, "..."], ones: int = 0) -> Shaped[np.ndarray, "..."]:
    """Returns a view in cfgjax's layout; the inverse of `to_theirs`."""
    if array.ndim == 4 and not ones:
        return array.transpose(2, 3, 1, 0)
    return array.reshape(array.shape[:2]).T if path[-1] in ("kernel", "position") else array


def shapes_of(net: Convertible, image_shape: Sequence[int]) -> PyTree:
    """Returns the tree of parameter shapes of a network for images [H, W, C]. Computes nothing.

    Raises UsageError if the network does not accept image_shape.
    """
    struct = lambda *shape, dtype=np.float32: jax.ShapeDtypeStruct(shape, dtype)
    image, is_unet = struct(1, *image_shape), hasattr(net, "out_channels")
    inputs = (image, struct(1), struct(1, dtype=np.int32)) if is_unet else (image, struct(1))
    options = {"low_res": image} if getattr(net, "low_res", False) else {}
    try:
        return jax.eval_shape(net.init, jax.random.key(0), *inputs, **options)["params"]
    except (TypeError, ValueError) as e:
        raise UsageError(f"the network cannot be built: {one_line(e)}") from e


def params_from_state_dict(state_dict: Mapping[str, ArrayLike], shapes: PyTree, slot: SlotOf) -> dict[str, Any]:
    """Returns the float32 parameter tree of a state dict. Each array is used exactly once.

    state_dict: {key: array}. shapes: tree of parameter shapes. slot: function from a path in the tree to its `Slot`. A
    single float32 array becomes a view, not a copy. Raises UsageError as `check_keys_and_shapes` does, and for the
    first array that is not floating-point or not finite in float32.
    """
    check_keys_and_shapes(state_dict, shapes, slot)
    found: dict[LeafPath, np.ndarray] = {}
    for path in leaves_by_path(shapes):
        keys, ones = slot(path)
        for key in keys:
            if not jax.dtypes.issubdtype(dtype := np.asarray(state_dict[key]).dtype, np.floating):
                raise UsageError(f"{key} has dtype {dtype}; need a floating-point dtype")
        with np.errstate(over="ignore"):
            arrays = [np.asarray(state_dict[key], np.float32) for key in keys]
        for key, array in zip(keys, arrays, strict=True):
            if bad := count_not_finite(array):
                raise UsageError(f"{key} has {bad:,} of {array.size:,} values that are not finite in float32")
        found[path] = to_ours(path, arrays[0] if len(arrays) == 1 else np.concatenate(arrays), ones)
    return tree_of_leaves(found)


def state_dict_from_params(params: PyTree, slot: SlotOf) -> dict[str, Float32[np.ndarray, "..."]]:
    """Returns {key: float32 array, as PyTorch's}, views of numpy params. The inverse of `params_from_state_dict`."""
    found: dict[str, np.ndarray] = {}
    for path, leaf in leaves_by_path(params).items():
        keys, ones = slot(path)
        parts = np.split(to_theirs(path, np.asarray(leaf, np.float32), ones), len(keys))
        found |= dict(zip(keys, parts, strict=True))
    return found


def check_keys_and_shapes(state_dict: Mapping[str, ArrayLike], shapes: PyTree, slot: SlotOf) -> None:
    """Raises UsageError with the first ten missing and unused keys, and the first key with another shape."""
    wanted: dict[str, tuple[int, ...]] = {}
    for path, leaf in leaves_by_path(shapes).items():
        keys, ones = slot(path)
        rows, *rest = to_theirs(path, np.broadcast_to(np.float32(0), leaf.shape), ones).shape
        wanted |= dict.fromkeys(keys, (rows // len(keys), *rest))
    problems = []
    missing = [key for key in wanted if key not in state_dict]
    unused = sorted(state_dict.keys() - wanted.keys())
    if missing or unused:
        problems.append("its keys are not the network's")
    problems += [
        f"{len(keys)} {word}: {some(keys)}" for word, keys in (("missing", missing), ("not used", unused)) if keys
    ]
    present = [key for key in wanted if key in state_dict]
    if wrong := [key for key in present if np.shape(state_dict[key]) != wanted[key]]:
        key, others = wrong[0], f" ({len(wrong)} arrays differ)" if len(wrong) > 1 else ""
        problems.append(f"{key} has shape {np.shape(state_dict[key])}, but the network needs {wanted[key]}{others}")
    if problems:
        raise UsageError("; ".join(problems))


def some(keys: Sequence[str]) -> str:
    """Returns the first ten keys as text."""
    return ", ".join(keys[:MOST_NAMED]) + (", …" if len(keys) > MOST_NAMED else "")


def leaves_by_path(nested: PyTree) -> dict[LeafPath, Any]:
    """Returns {path: leaf} for a tree of dicts."""
    leaves = jax.tree_util.tree_leaves_with_path(nested)
    return {tuple(entry.key for entry in path): leaf for path, leaf in leaves}


def tree_of_leaves(leaves: Mapping[LeafPath, Any]) -> dict[str, Any]:
    """Returns the tree of dicts of {path: leaf}; the inverse of `leaves_by_path`."""
    nested: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = nested
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return nested


def with_null_label(net: Convertible) -> Convertible:
    """Returns net with a null label. Raises UsageError if it is not conditional on labels."""
    if not getattr(net, "conditional", False):
        raise UsageError("a null label needs a network that is conditional on labels")
    return net.clone(null_label=True)


def add_null_row(params: dict[str, Any]) -> dict[str, Any]:
    """Returns params with an additional row for the null label in the label table: the mean of the other rows.

    The row is a starting point for fine-tuning with label dropout; before that the unconditional model is meaningless.
    """
    label = params["label"]
    row = label.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)
    return params | {"label": np.concatenate([label, row])}
