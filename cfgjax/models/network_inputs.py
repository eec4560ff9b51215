"""What a network takes besides the label: a low-resolution image, and inputs of its own.

A network that takes more than the label has a method `condition(batch) → {name: zeros [batch, …]}`, and is called with
these arrays as keyword arguments. If "no condition" means another value of one of them, it also has a method
`null(cond) → cond`, which is given the tree with the null label.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from cfgjax.base.errors import UsageError
from cfgjax.data.batches import to_float
from cfgjax.data.sources.registry import check_images
from cfgjax.models.arguments import is_number

CLEAN_LOGSNR = 20.0  # of a low-resolution image without noise

ConditionArrays = dict[str, np.ndarray]


def own_inputs(net: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns {name: shape [1, …] and dtype} of a network's inputs of its own."""
    return jax.eval_shape(lambda: net.condition(1)) if hasattr(net, "condition") else {}


def check_own_inputs(given: Mapping[str, Any] | None, taken: Mapping[str, Any], length: int) -> ConditionArrays:
    """Returns the arrays of a network's own inputs for `length` examples, in their dtypes.

    taken: see `own_inputs`. Raises UsageError unless given has exactly these names, with finite values of their shapes.
    """
    given = given or {}
    if set(given) != set(taken):
        names = lambda tree: ", ".join(sorted(tree)) or "none"
        raise UsageError(f"the conditions besides the label are {names(given)}; the network takes {names(taken)}")
    return {name: _checked(name, given[name], (length, *like.shape[1:]), like.dtype) for name, like in taken.items()}


def _checked(name: str, value: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    array = np.asarray(value)
    kinds = "iuf" if np.issubdtype(dtype, np.floating) else "iu"
    if array.shape != shape or array.dtype.kind not in kinds:
        raise UsageError(f"condition {name} is {array.dtype}{list(array.shape)}; need {dtype}{list(shape)}")
    if not np.isfinite(array).all():
        raise UsageError(f"condition {name} has a value that is not finite")
    return array.astype(dtype)


def check_low_res_logsnr(logsnr: float | None, least: float | None) -> np.float32 | None:
    """Returns λ of the noise in low-resolution images, CLEAN_LOGSNR by default.

    least: the noisiest λ of the training, or None for a network that was not trained with noise; then the result is
    None. Raises UsageError for another λ.
    """
    if least is None:
        if logsnr is not None:
            raise UsageError(
                f"low_res_logsnr is {logsnr}; the network was not trained with noise in low_res: leave it out"
            )
        return None
    logsnr = CLEAN_LOGSNR if logsnr is None else logsnr
    if not is_number(logsnr) or not least <= logsnr <= CLEAN_LOGSNR:
        raise UsageError(f"low_res_logsnr is {logsnr!r}; the network was trained with {least:g} … {CLEAN_LOGSNR:g}")
    return np.float32(logsnr)


def check_upsamples(given: bool, low_res_shape: tuple[int, ...] | None) -> None:
    """Raises UsageError unless low-resolution images are given to an upsampler, or not given to another model.

    low_res_shape: of the images that the model takes, or None.
    """
    if given == (low_res_shape is not None):
        return
    if given:
        raise UsageError("low_res is given; the model is not an upsampler and takes none")
    needs = f"images of shape {low_res_shape} (a cascade's --base draws them)"
    raise UsageError(f"low_res is not given; the model is an upsampler and needs low_res, {needs}")


def check_low_res(low_res: Any, low_res_shape: tuple[int, ...] | None, length: int) -> ConditionArrays:
    """Returns {"low_res": images in [−1, 1], float32}, or {} for a model that takes none.

    low_res: uint8 or float32 [length, *low_res_shape]. Raises UsageError for other images.
    """
    check_upsamples(low_res is not None, low_res_shape)
    if low_res_shape is None:
        return {}
    low_res = np.asarray(low_res)
    check_images(low_res, low_res_shape)
    if len(low_res) != length:
        raise UsageError(f"low_res has {len(low_res)} images for {length} labels; need an image per label")
    return {"low_res": to_float(low_res)}
