"""One table for both directions: where each of our parameters is kept in a PyTorch state dict, and in what layout."""

from typing import NamedTuple

import jax
import numpy as np

from cfgjax.base.errors import UsageError, one_line
from cfgjax.base.finite import count_not_finite

MOST_NAMED = 10  # keys in an error


class Slot(NamedTuple):
    """Where a parameter of ours is kept there.

    keys: of their arrays, which joined along their first axis are ours. ones: how many axes of length one they have
    behind a matrix, which is a convolution of width one there and a dense layer here.
    """

    keys: tuple[str, ...]
    ones: int = 0


def to_theirs(path, array, ones=0):
    """A view of our array in their layout: HWIO → OIHW, kernel [in, out] → [out, in, 1…], position [N, C] → [C, N]."""
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    return array.T[(..., *[None] * ones)] if path[-1] in ("kernel", "position") else array


def to_ours(path, array, ones=0):
    """A view of their array in our layout, the inverse of `to_theirs`."""
    if array.ndim == 4 and not ones:
        return array.transpose(2, 3, 1, 0)
    return array.reshape(array.shape[:2]).T if path[-1] in ("kernel", "position") else array


def shapes_of(net, image_shape):
    """The shapes of a `UNet`'s or a `NoisyClassifier`'s parameters for images [H, W, C], a tree; nothing is computed.

    Raises UsageError where net and image_shape do not fit each other.
    """
    struct = lambda *shape, dtype=np.float32: jax.ShapeDtypeStruct(shape, dtype)
    image, is_unet = struct(1, *image_shape), hasattr(net, "out_channels")
    inputs = (image, struct(1), struct(1, dtype=np.int32)) if is_unet else (image, struct(1))
    options = {"low_res": image} if getattr(net, "low_res", False) else {}
    try:
        return jax.eval_shape(net.init, jax.random.key(0), *inputs, **options)["params"]
    except (TypeError, ValueError) as e:
        raise UsageError(f"the network cannot be built: {one_line(e)}") from e


def load(state_dict, shapes, slot):
    """Our parameter tree, float32, out of their arrays, each of which is used exactly once.

    state_dict: {key: array}. shapes: of our parameters, a tree. slot: function of a path in it that gives its `Slot`.
    A single float32 array becomes a view, not a copy. Raises UsageError as `check` does, and for the first array that
    is not floating-point, or not finite in float32.
    """
    check(state_dict, shapes, slot)
    found: dict = {}
    for path in flat(shapes):
        keys, ones = slot(path)
        for key in keys:
            if not jax.dtypes.issubdtype(dtype := np.asarray(state_dict[key]).dtype, np.floating):
                raise UsageError(f"{key} has dtype {dtype}; weights are floating-point")
        with np.errstate(over="ignore"):
            arrays = [np.asarray(state_dict[key], np.float32) for key in keys]
        for key, array in zip(keys, arrays, strict=True):
            if bad := count_not_finite(array):
                raise UsageError(f"{key} has {bad:,} of {array.size:,} values that are not finite in float32")
        found[path] = to_ours(path, arrays[0] if len(arrays) == 1 else np.concatenate(arrays), ones)
    return tree(found)


def save(params, slot):
    """{their key: array, float32, in their layout}, views where params are numpy: the inverse of `load`."""
    found: dict = {}
    for path, leaf in flat(params).items():
        keys, ones = slot(path)
        parts = np.split(to_theirs(path, np.asarray(leaf, np.float32), ones), len(keys))
        found |= dict(zip(keys, parts, strict=True))
    return found


def check(state_dict, shapes, slot):
    """Raises UsageError naming the first ten keys that are missing or not used, and the first of another shape."""
    wanted: dict = {}
    for path, leaf in flat(shapes).items():
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
        key, others = wrong[0], f" ({len(wrong)} differ in all)" if len(wrong) > 1 else ""
        problems.append(f"{key} has shape {np.shape(state_dict[key])}, the network needs {wanted[key]}{others}")
    if problems:
        raise UsageError("; ".join(problems))


def some(keys):
    """The first ten of the keys, in words."""
    return ", ".join(keys[:MOST_NAMED]) + (", …" if len(keys) > MOST_NAMED else "")


def flat(nested):
    """{("block", "layer", "kernel"): leaf} of a tree of dicts."""
    leaves = jax.tree_util.tree_leaves_with_path(nested)
    return {tuple(entry.key for entry in path): leaf for path, leaf in leaves}


def tree(leaves):
    """The inverse of `flat`."""
    nested: dict = {}
    for path, leaf in leaves.items():
        node = nested
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return nested


def with_null_label(net):
    """net with a null label. Raises UsageError where it has no labels."""
    if not getattr(net, "conditional", False):
        raise UsageError("a null label needs a network that is conditional on labels")
    return net.clone(null_label=True)


def add_null_row(params):
    """params with one row more in the table of labels, for "no condition": the mean of the others.

    It is a start for fine-tuning with label dropout; until then the unconditional model means nothing.
    """
    label = params["label"]
    row = label.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)
    return params | {"label": np.concatenate([label, row])}
