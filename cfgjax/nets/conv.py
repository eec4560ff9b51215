"""The 3×3 convolution, with a gradient that XLA:CPU runs fast inside loops."""

import jax


def conv(x, kernel):
    """x [B, H, W, C] * kernel [h, w, C, O], stride 1, padded by one on every side: [B, H, W, O]."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=numbers)


@jax.custom_vjp
def conv_cpu(x, kernel):
    """`conv`, its gradients written as convolutions in NHWC/HWIO too. Reverse mode only.

    XLA:CPU has a fast convolution for that layout alone, and brings others into it only outside loops: in a scan
    over optimizer steps or accumulated parts the weight gradient of `conv` takes 10 to 60 times as long as this one.
    """
    return conv(x, kernel)


def _forward(x, kernel):
    return conv(x, kernel), (x, kernel)


def _backward(saved, grad):
    x, kernel = saved
    grad_x = conv(grad, kernel[::-1, ::-1].swapaxes(2, 3))
    # the output gradient as a kernel [H, W, B, O] slides over the input [C, H, W, B]
    grad_kernel = conv(x.transpose(3, 1, 2, 0), grad.transpose(1, 2, 0, 3)).transpose(1, 2, 0, 3)
    return grad_x, grad_kernel


conv_cpu.defvjp(_forward, _backward)


def conv_general(x, kernel, strides, padding, **options):
    """In place of `lax.conv_general_dilated`, for `nn.Conv`: the CPU form for 3×3 at stride 1 on that platform."""
    unusual = [options.get("feature_group_count", 1) != 1, options.get("precision") is not None]
    unusual += [set(options.get(name) or (1,)) != {1} for name in ("lhs_dilation", "rhs_dilation")]
    padded = kernel.shape[:2] == (3, 3) and [*map(tuple, padding)] == [(1, 1), (1, 1)]
    if padded and tuple(strides) == (1, 1) and not any(unusual) and jax.default_backend() == "cpu":
        return conv_cpu(x, kernel)
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
