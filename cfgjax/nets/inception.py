"""The Inception network of FID (arXiv:1706.08500): TensorFlow's graph of 2015-12-05, from pytorch-fid's state dict.

The network is a table: a tuple holds steps in order, a list holds branches whose outputs are concatenated.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Shaped

from cfgjax.base.errors import UsageError, choose
from cfgjax.base.weights import read_state_dict

SIZE = 299
EPSILON = 1e-3  # of batch normalisation
POOL3, CLASSES = 2048, 1008
SPATIAL_BLOCK, SPATIAL_CHANNELS = "Mixed_6d", 7  # mixed_6 of the graph; its first channels are those of mixed_6/conv
HIGHEST = jax.lax.Precision.HIGHEST

InceptionMap = Float[Array, "n _height _width _channels"]
Images = Shaped[Array, "..."] | Shaped[np.ndarray, "..."]  # `resized` checks them
Features = dict[str, Float[Array, "n _features"]]
StateDict = Mapping[str, Any]  # arrays, which `check_state_dict` checks


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution without bias, followed by batch normalisation and ReLU."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


Step = Conv | Callable[[InceptionMap], InceptionMap] | list | tuple  # lists and tuples hold steps
Layer = Callable[[str, Conv, InceptionMap], InceptionMap]


def average_pool(x: InceptionMap) -> InceptionMap:
    """Returns the means over 3×3 neighbourhoods, which exclude the padding."""
    height, width = (np.convolve(np.ones(n, np.float32), np.ones(3, np.float32), "same") for n in x.shape[1:3])
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    return total / (height[:, None, None] * width[:, None])


def max_pool(x: InceptionMap, stride: int = 1, padding: str = "SAME") -> InceptionMap:
    """Returns the maxima over 3×3 neighbourhoods."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), padding)


max_pool_down = functools.partial(max_pool, stride=2, padding="VALID")

STEM = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
    Conv("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    max_pool_down,
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
    max_pool_down,
)


def block_a(pool_channels: int) -> Step:
    """35×35: 1×1, 5×5, twice 3×3, pool."""
    return [
        Conv("branch1x1", 64),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))),
        (average_pool, Conv("branch_pool", pool_channels)),
    ]


BLOCK_B = [  # 35×35 → 17×17
    Conv("branch3x3", 384, (3, 3), 2, "VALID"),
    (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3), 2, "VALID")),
    max_pool_down,
]


def block_c(n: int) -> Step:
    """17×17: 1×1, 7×7 as a row and a column, the same twice, pool. n: channels inside the branches."""
    return [
        Conv("branch1x1", 192),
        (Conv("branch7x7_1", n), Conv("branch7x7_2", n, (1, 7)), Conv("branch7x7_3", 192, (7, 1))),
        (
            Conv("branch7x7dbl_1", n),
            Conv("branch7x7dbl_2", n, (7, 1)),
            Conv("branch7x7dbl_3", n, (1, 7)),
            Conv("branch7x7dbl_4", n, (7, 1)),
            Conv("branch7x7dbl_5", 192, (1, 7)),
        ),
        (average_pool, Conv("branch_pool", 192)),
    ]


BLOCK_D = [  # 17×17 → 8×8
    (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2, "VALID")),
    (
        Conv("branch7x7x3_1", 192),
        Conv("branch7x7x3_2", 192, (1, 7)),
        Conv("branch7x7x3_3", 192, (7, 1)),
        Conv("branch7x7x3_4", 192, (3, 3), 2, "VALID"),
    ),
    max_pool_down,
]


def block_e(pool: Callable[[InceptionMap], InceptionMap]) -> Step:
    """8×8: 1×1, 3×3 as a row and a column in parallel, the same after another 3×3, pool."""
    return [
        Conv("branch1x1", 320),
        (Conv("branch3x3_1", 384), [Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1))]),
        (
            Conv("branch3x3dbl_1", 448),
            Conv("branch3x3dbl_2", 384, (3, 3)),
            [Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1))],
        ),
        (pool, Conv("branch_pool", 192)),
    ]


NETWORK: dict[str, Step] = {
    "": STEM,
    "Mixed_5b": block_a(32),
    "Mixed_5c": block_a(64),
    "Mixed_5d": block_a(64),
    "Mixed_6a": BLOCK_B,
    "Mixed_6b": block_c(128),
    "Mixed_6c": block_c(160),
    "Mixed_6d": block_c(160),
    "Mixed_6e": block_c(192),
    "Mixed_7a": BLOCK_D,
    "Mixed_7b": block_e(average_pool),
    "Mixed_7c": block_e(max_pool),  # the graph's own oddity
}


def load(weights: str | Path | StateDict, *, resize: str = "tf1") -> Callable[[Images], Features]:
    """Returns a compiled function features(images), which is `apply` with the parameters on the device.

    weights: path of pt_inception-2015-12-05 (.pth or .npz), or its state dict.
    """
    choose("resize", resize, RESIZES)
    params = jax.device_put(parameters(weights if isinstance(weights, Mapping) else read_state_dict(weights)))
    compiled = jax.jit(functools.partial(apply, resize=resize))
    return lambda images: compiled(params, images)


def apply(params: Mapping[str, Mapping[str, Float[Array, "..."]]], images: Images, *, resize: str = "tf1") -> Features:
    """Returns {"pool3": [N, 2048], "logits": [N, 1008] without bias, "spatial": [N, 2023] of sFID}, float32.

    params: returned by `parameters`; add params["fc"]["bias"] to the logits if you need it. resize: a key of RESIZES.
    images: uint8 [N, H, W, 3], or [N, H, W, 1] for grey. Computed in float32 at highest precision on every device.
    """

    def conv(module: str, layer: Conv, x: InceptionMap) -> InceptionMap:
        return jax.nn.relu(convolve(x, params[module]["kernel"], layer) + params[module]["bias"])

    x, spatial = trunk((resized(images, resize) - 128) / 128, conv)  # the graph's scale; ports have x/127.5 − 1
    pool3 = x.mean((1, 2))
    logits = jnp.matmul(pool3, params["fc"]["kernel"], precision=HIGHEST)
    return {"pool3": pool3, "logits": logits, "spatial": spatial.reshape(len(spatial), -1)}


def trunk(x: Float[Array, "n 299 299 3"], conv: Layer) -> tuple[Float[Array, "n 8 8 2048"], Float[Array, "n 17 17 7"]]:
    """Returns (output, sFID's channels) of the network on x.

    conv(module, layer, x) applies a `Conv` layer, called `module` in the state dict.
    """
    for block, steps in NETWORK.items():
        x = apply_step(steps, x, conv, f"{block}." if block else "")
        if block == SPATIAL_BLOCK:
            spatial = x[..., :SPATIAL_CHANNELS]
    return x, spatial


def apply_step(step: Step, x: InceptionMap, conv: Layer, prefix: str) -> InceptionMap:
    """Applies a step to x. prefix: precedes the names of its layers."""
    if isinstance(step, Conv):
        return conv(prefix + step.name, step, x)
    if isinstance(step, list):
        return jnp.concatenate([apply_step(branch, x, conv, prefix) for branch in step], axis=-1)
    if isinstance(step, tuple):
        return functools.reduce(lambda x, inner: apply_step(inner, x, conv, prefix), step, x)
    return step(x)


def convolve(x: InceptionMap, kernel: Float[Array, "_height _width _channels _outputs"], layer: Conv) -> InceptionMap:
    """Returns x [N, H, W, C] * kernel [h, w, C, O] in float32."""
    numbers, strides = ("NHWC", "HWIO", "NHWC"), (layer.stride, layer.stride)
    return jax.lax.conv_general_dilated(x, kernel, strides, layer.padding, dimension_numbers=numbers, precision=HIGHEST)


def tf1(out_size: int, in_size: int) -> Float[np.ndarray, " out_size"]:
    """Returns the source coordinates i in/out of TensorFlow 1's bilinear resize (no half pixel, no aligned corners)."""
    return np.arange(out_size) * (in_size / out_size)


def half_pixel(out_size: int, in_size: int) -> Float[np.ndarray, " out_size"]:
    """Returns the source coordinates max((i + ½) in/out − ½, 0) of torch's `interpolate(align_corners=False)`."""
    return np.maximum((np.arange(out_size) + 0.5) * (in_size / out_size) - 0.5, 0)


RESIZES = {"tf1": tf1, "half_pixel": half_pixel}


def resized(images: Images, resize: str) -> Float[Array, "n 299 299 3"]:
    """Returns images resized to float32 [N, 299, 299, 3] in 0 … 255, bilinear without antialias; grey is repeated."""
    shape = jnp.shape(images)
    if images.dtype != jnp.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or not shape[1] * shape[2]:
        raise UsageError(f"images have dtype {images.dtype} and shape {shape}; need uint8 [N, H, W, 3] or [N, H, W, 1]")
    rows, columns = (interpolation(choose("resize", resize, RESIZES)(SIZE, n), n) for n in shape[1:3])
    x = jnp.broadcast_to(jnp.asarray(images, jnp.float32), (*shape[:3], 3))
    x = jnp.einsum("ph,nhwc->npwc", rows, x, precision=HIGHEST)
    return jnp.einsum("qw,npwc->npqc", columns, x, precision=HIGHEST)


def interpolation(source: Float[np.ndarray, " out"], in_size: int) -> Float[np.ndarray, "out {in_size}"]:
    """Returns the float32 matrix of linear interpolation at source coordinates, clamped to the last pixel."""
    low = np.minimum(source.astype(int), in_size - 1)
    eye = np.eye(in_size)
    part = (source - low)[:, None]
    return ((1 - part) * eye[low] + part * eye[np.minimum(low + 1, in_size - 1)]).astype(np.float32)


def parameters(state_dict: StateDict) -> dict[str, dict[str, Float[np.ndarray, "..."]]]:
    """Returns {module: {"kernel" HWIO, "bias"}}, numpy float32, from pytorch-fid's state dict.

    Batch normalisation is folded in, in float64. `num_batches_tracked` is ignored. Raises UsageError naming keys that
    are missing, unexpected, of another shape, or not finite.
    """
    check_state_dict(state_dict)
    params = {}
    for module in (name.removesuffix(".conv.weight") for name in state_dict if name.endswith(".conv.weight")):
        weight = np.asarray(state_dict[f"{module}.conv.weight"], np.float64)
        gamma, beta, mean, var = (
            np.asarray(state_dict[f"{module}.bn.{name}"], np.float64)
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / np.sqrt(var + EPSILON)
        params[module] = {"kernel": weight.transpose(2, 3, 1, 0) * scale, "bias": beta - mean * scale}
    params["fc"] = {"kernel": np.asarray(state_dict["fc.weight"]).T, "bias": np.asarray(state_dict["fc.bias"])}
    return jax.tree.map(lambda a: np.ascontiguousarray(a, np.float32), params)


def check_state_dict(state_dict: StateDict) -> None:
    """Raises UsageError unless state_dict has the keys and shapes of `shapes()`, and finite values."""
    expected = shapes()
    counts = {k.replace("running_var", "num_batches_tracked") for k in expected if k.endswith(".running_var")}
    missing = sorted(expected.keys() - state_dict.keys())
    unexpected = sorted(state_dict.keys() - expected.keys() - counts)
    if missing or unexpected:
        raise UsageError(f"not the FID Inception network: {summary(missing)} missing, {summary(unexpected)} unexpected")
    wrong = [k for k, shape in expected.items() if np.shape(state_dict[k]) != shape]
    if wrong:
        first = f"{wrong[0]} has shape {np.shape(state_dict[wrong[0]])}, not {expected[wrong[0]]}"
        raise UsageError(f"not the FID Inception network: {summary(wrong)} of another shape; {first}")
    negative = lambda k: k.endswith(".running_var") and np.min(state_dict[k]) < 0
    invalid = [k for k in expected if not finite(state_dict[k]) or negative(k)]
    if invalid:
        raise UsageError(f"Inception has weights that are not finite, or variances below 0: {summary(invalid)}")


def finite(value: object) -> bool:
    """Whether value is an array of finite numbers."""
    try:
        return bool(np.isfinite(np.asarray(value, np.float64)).all())
    except (TypeError, ValueError):
        return False


def summary(keys: list[str]) -> str:
    """Returns the number of keys and the first three: "5 keys (a, b, c, …)"."""
    names = f" ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})" if keys else ""
    return f"{len(keys)} {'key' if len(keys) == 1 else 'keys'}{names}"


@functools.cache
def shapes() -> dict[str, tuple[int, ...]]:
    """Returns {key: shape} of the state dict, in PyTorch's layouts, without `num_batches_tracked`."""
    result: dict[str, tuple[int, ...]] = {"fc.weight": (CLASSES, POOL3), "fc.bias": (CLASSES,)}

    def conv(module: str, layer: Conv, x: InceptionMap) -> InceptionMap:
        result[f"{module}.conv.weight"] = (layer.channels, x.shape[-1], *layer.kernel)
        for name in ("weight", "bias", "running_mean", "running_var"):
            result[f"{module}.bn.{name}"] = (layer.channels,)
        return convolve(x, jnp.zeros((*layer.kernel, x.shape[-1], layer.channels)), layer)

    jax.eval_shape(functools.partial(trunk, conv=conv), jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32))
    return result
