"""The 3×3 convolution by Winograd's minimal filtering F(2×2, 3×3), Lavin and Gray (arXiv:1509.09308), section 4.1.

A 2×2 tile of the output is computed from 4×4 pixels of the input with 16 products instead of 36:
y = Aᵀ [(G k Gᵀ) ⊙ (Bᵀ x B)] A. Summed over channels, ⊙ becomes 16 matrix products. Without the optimization barriers,
XLA:CPU would recompute the transformed arrays inside the products.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

hold = jax.lax.optimization_barrier

AlongAxis = Sequence[Array]  # the arrays that lie along an axis


def convolution(
    x: Float[Array, "batch height width channels"], kernel: Float[Array, "3 3 channels outputs"]
) -> Float[Array, "batch height width outputs"]:
    """Returns x * kernel with stride 1 and padding 1 on every side. Height and width must be even."""
    products = jnp.einsum("ijbhwc,ijco->ijbhwo", input_tiles(x), kernel_tiles(kernel))
    sums = both_axes(over_output, hold(products))
    return hold(sums.transpose(2, 3, 0, 4, 1, 5).reshape(*x.shape[:3], -1))


def weight_gradient(
    x: Float[Array, "batch height width channels"], grad: Float[Array, "batch height width outputs"]
) -> Float[Array, "3 3 channels outputs"]:
    """Returns the gradient of `convolution` with respect to its kernel. grad: the gradient of its result."""
    products = jnp.einsum("ijbhwc,ijbhwo->ijco", input_tiles(x), output_tiles(grad))
    return both_axes(from_kernel, hold(products))


def input_tiles(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "4 4 batch height//2 width//2 channels"]:
    """Returns Bᵀ x B for the 4×4 tiles of x, which start at every second row and column."""
    height, width = x.shape[1:3]
    x = hold(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))
    rows = hold(jnp.stack(over_input([x[:, i : i + height - 1 : 2] for i in range(4)])))
    return hold(jnp.stack(over_input([rows[..., j : j + width - 1 : 2, :] for j in range(4)]), axis=1))


def output_tiles(
    grad: Float[Array, "batch height width outputs"],
) -> Float[Array, "4 4 batch height//2 width//2 outputs"]:
    """Returns A g Aᵀ for the 2×2 tiles of grad."""
    rows = hold(jnp.stack(from_output([grad[:, i::2] for i in range(2)])))
    return hold(jnp.stack(from_output([rows[..., j::2, :] for j in range(2)]), axis=1))


def kernel_tiles(kernel: Float[Array, "3 3 channels outputs"]) -> Float[Array, "4 4 channels outputs"]:
    """Returns G k Gᵀ for kernel."""
    return hold(both_axes(over_kernel, kernel))


def both_axes(
    matrix: Callable[[AlongAxis], list[Array]], a: Float[Array, "rows columns *rest"]
) -> Float[Array, "new_rows new_columns *rest"]:
    """Returns M a Mᵀ over the first two axes of a, where matrix(rows) multiplies M by the arrays along an axis."""
    rows = hold(jnp.stack(matrix([*a])))
    return jnp.stack(matrix([*rows.swapaxes(0, 1)]), axis=1)


def over_input(x: AlongAxis) -> list[Array]:
    """Returns Bᵀ x."""
    return [x[0] - x[2], x[1] + x[2], x[2] - x[1], x[1] - x[3]]


def over_kernel(k: AlongAxis) -> list[Array]:
    """Returns G k."""
    ends = 0.5 * (k[0] + k[2])
    return [k[0], ends + 0.5 * k[1], ends - 0.5 * k[1], k[2]]


def from_kernel(products: AlongAxis) -> list[Array]:
    """Returns Gᵀ p."""
    middle = 0.5 * (products[1] + products[2])
    return [products[0] + middle, 0.5 * (products[1] - products[2]), middle + products[3]]


def over_output(products: AlongAxis) -> list[Array]:
    """Returns Aᵀ p."""
    return [products[0] + products[1] + products[2], products[1] - products[2] - products[3]]


def from_output(grad: AlongAxis) -> list[Array]:
    """Returns A g."""
    return [grad[0], grad[0] + grad[1], grad[0] - grad[1], -grad[1]]
