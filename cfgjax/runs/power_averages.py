"""Power-function averages of the parameters: any width, from stored ones. 2312.02696, §3 and appendix C, in float64.

At time t such an average has the profile p(τ) = (γ + 1) τ^γ / t^(γ+1) over the parameters of the steps τ ∈ [0, t].
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

MAX_PROFILE_ERROR = 0.25  # relative error of a profile from which a width is not supported
CANDIDATES = np.geomspace(1e-3, 12**-0.5, 400)  # widths among which the supported ones are looked for


def exponent(width: float) -> float:
    """Returns γ, the largest real root of γ³ + 7γ² + (16 − q)γ + (12 − q) with q = width⁻².

    width: σ_rel = √((γ + 1) / ((γ + 2)² (γ + 3))), the standard deviation of the profile over t, in (0, 12^−½].
    """
    q = width**-2.0
    roots = np.roots([1.0, 7.0, 16.0 - q, 12.0 - q])
    return float(roots.real[np.abs(roots.imag) < 1e-6 * (1 + np.abs(roots.real))].max())


def inner_products(
    t_a: Float[np.ndarray, "*a"],
    gamma_a: Float[np.ndarray, "*a"],
    t_b: Float[np.ndarray, "*b"],
    gamma_b: Float[np.ndarray, "*b"],
) -> Float[np.ndarray, "..."]:
    """Returns ⟨p_a, p_b⟩ = (γ_a+1)(γ_b+1)(t_a/t_b)^(γ_b if t_a < t_b else −γ_a) / ((γ_a+γ_b+1) max(t_a, t_b))."""
    power = np.where(t_a < t_b, gamma_b, -gamma_a)
    scale = (gamma_a + gamma_b + 1) * np.maximum(t_a, t_b)
    return (gamma_a + 1) * (gamma_b + 1) * (t_a / t_b) ** power / scale


def combination(
    stored: Sequence[tuple[float, float]], time: float, widths: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "stored n"], Float[np.ndarray, " n"]]:
    """Returns (X = A⁻¹ b with columns of sum 1, ‖p − Σ x_i p_i‖ / ‖p‖) for the averages of some widths at `time`.

    stored: (time, width) of each stored average, all different. A: inner products of their profiles; b: those with the
    profiles that are approximated.
    """
    t, gamma = np.array([(t, exponent(width)) for t, width in stored]).T
    now, wanted = np.full(len(widths), float(time)), np.array([exponent(width) for width in widths])
    a = inner_products(t[:, None], gamma[:, None], t, gamma)
    b = inner_products(t[:, None], gamma[:, None], now, wanted)
    x = np.linalg.solve(a, b)
    x /= x.sum(axis=0)
    norm = inner_products(now, wanted, now, wanted)
    squared = norm - 2 * (x * b).sum(axis=0) + (x * (a @ x)).sum(axis=0)
    return x, np.sqrt(np.maximum(squared, 0) / norm)


def supported_widths(stored: Sequence[tuple[float, float]], time: float) -> tuple[float, float]:
    """Returns the smallest and the largest width whose profile at `time` has at most MAX_PROFILE_ERROR."""
    errors = combination(stored, time, CANDIDATES)[1]
    found = CANDIDATES[errors <= MAX_PROFILE_ERROR]
    return float(found.min()), float(found.max())
