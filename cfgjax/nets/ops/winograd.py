"""The 3×3 convolution by Winograd's minimal filtering F(2×2, 3×3), Lavin and Gray (arXiv:1509.09308), section 4.1.

Every 2×2 tile of the output comes of 4×4 of the input by 16 products instead of 36:
y = Aᵀ [(G k Gᵀ) ⊙ (Bᵀ x B)] A, and summed over channels ⊙ is 16 matrix products. Barriers keep the transformed arrays
whole: XLA:CPU would otherwise compute them anew inside the products.
"""

import jax
import jax.numpy as jnp

hold = jax.lax.optimization_barrier


def convolution(x, kernel):
    """x [B, H, W, C] * kernel [3, 3, C, O], stride 1, padded by one on every side, H and W even: [B, H, W, O]."""
    products = jnp.einsum("ijbhwc,ijco->ijbhwo", input_tiles(x), kernel_tiles(kernel))
    sums = both_axes(over_output, hold(products))
    return hold(sums.transpose(2, 3, 0, 4, 1, 5).reshape(*x.shape[:3], -1))


def weight_gradient(x, grad):
    """The gradient of `convolution` by its kernel, grad [B, H, W, O] being that of its result: [3, 3, C, O]."""
    products = jnp.einsum("ijbhwc,ijbhwo->ijco", input_tiles(x), output_tiles(grad))
    return both_axes(from_kernel, hold(products))


def input_tiles(x):
    """Bᵀ x B of the 4×4 tiles of x [B, H, W, C], two apart: [4, 4, B, H/2, W/2, C]."""
    height, width = x.shape[1:3]
    x = hold(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))))
    rows = hold(jnp.stack(over_input([x[:, i : i + height - 1 : 2] for i in range(4)])))
    return hold(jnp.stack(over_input([rows[..., j : j + width - 1 : 2, :] for j in range(4)]), axis=1))


def output_tiles(grad):
    """A g Aᵀ of the 2×2 tiles of grad [B, H, W, O]: [4, 4, B, H/2, W/2, O]."""
    rows = hold(jnp.stack(from_output([grad[:, i::2] for i in range(2)])))
    return hold(jnp.stack(from_output([rows[..., j::2, :] for j in range(2)]), axis=1))


def kernel_tiles(kernel):
    """G k Gᵀ of kernel [3, 3, C, O]: [4, 4, C, O]."""
    return hold(both_axes(over_kernel, kernel))


def both_axes(matrix, a):
    """M a Mᵀ over the first two axes of a, M being given as a function of what lies along an axis."""
    rows = hold(jnp.stack(matrix([*a])))
    return jnp.stack(matrix([*rows.swapaxes(0, 1)]), axis=1)


def over_input(x):
    """Bᵀ x."""
    return [x[0] - x[2], x[1] + x[2], x[2] - x[1], x[1] - x[3]]


def over_kernel(k):
    """G k."""
    ends = 0.5 * (k[0] + k[2])
    return [k[0], ends + 0.5 * k[1], ends - 0.5 * k[1], k[2]]


def from_kernel(products):
    """Gᵀ p."""
    middle = 0.5 * (products[1] + products[2])
    return [products[0] + middle, 0.5 * (products[1] - products[2]), middle + products[3]]


def over_output(products):
    """Aᵀ p."""
    return [products[0] + products[1] + products[2], products[1] - products[2] - products[3]]


def from_output(grad):
    """A g."""
    return [grad[0], grad[0] + grad[1], grad[0] - grad[1], -grad[1]]
