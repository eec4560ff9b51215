"""Grids: the levels λ of a sampler. numpy float64 on the host.

A grid is a value, called as `grid(levels, num_steps) → λ [T]`, increasing, where levels is a process of
`diffusion.levels`; it raises ValueError for what the process does not have. The levels are an argument of a compiled
sampler, so that another grid with the same number of levels compiles nothing.

`schedule` has the levels of training. The others are functions of ς = σ/α = e^(−λ/2), EDM's σ, within the levels that
the model was trained on. A network of discrete time has seen only integer timesteps; its response to the fractions
between them, where other models interpolate the embedding, was never trained. By default the levels are therefore
rounded to the nearest timestep, for the sampler as well as for the network, as EDM does for such networks. With
rounded=False they stay as they are, and the network gets interpolated timesteps. Continuous processes round nothing.

EDM = Karras et al. 2022 (arXiv:2206.00364).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.levels import Continuous, Discrete
from cfgjax.diffusion.specs import Spec, number

Process = Continuous | Discrete
EDM_SIGMA_MIN, EDM_SIGMA_MAX = 0.002, 80.0  # EDM table 1
TOLERANCE = 1e-5  # of a bound that was copied from a message


@dataclass(frozen=True, repr=False)
class schedule(Spec):
    """The levels of training: quantiles of the process's λ, or the timesteps that a respaced process retains."""

    def __call__(self, levels: Process, num_steps: int | np.integer | str) -> Float64[np.ndarray, " t"]:
        return levels.grid(num_steps)


@dataclass(frozen=True, repr=False)
class edm(Spec):
    """ς_i = (ς_max^(1/ρ) + i/(T−1) (ς_min^(1/ρ) − ς_max^(1/ρ)))^ρ for i = 0 … T−1, EDM eq. (5).

    rho: in [1, 1000]; 1 is uniform in ς, and larger values have more levels at small ς. sigma_min, sigma_max: None
    takes EDM's 0.002 and 80, or the model's own bounds if these are narrower. rounded: see the module.
    """

    rho: Any = 7.0
    sigma_min: Any = None
    sigma_max: Any = None
    rounded: Any = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "rho", number("rho", self.rho, 1, 1000))
        check_bounds(self, "sigma_min", "sigma_max", least=0.0)
        check_rounded(self.rounded)

    def __call__(self, levels: Process, num_steps: int | np.integer | str) -> Float64[np.ndarray, " t"]:
        trained_min, trained_max = noise_to_signal(levels.logsnr_max), noise_to_signal(levels.logsnr_min)
        low = max(EDM_SIGMA_MIN, trained_min) if self.sigma_min is None else self.sigma_min
        high = min(EDM_SIGMA_MAX, trained_max) if self.sigma_max is None else self.sigma_max
        check_within("sigma", "ς", (low, high), (trained_min, trained_max))
        fraction = np.linspace(0.0, 1.0, count(self, num_steps))
        roots = high ** (1 / self.rho) + fraction * (low ** (1 / self.rho) - high ** (1 / self.rho))
        return at_levels(self, levels, -2 * self.rho * np.log(roots))


@dataclass(frozen=True, repr=False)
class uniform(Spec):
    """λ at equal distances from logsnr_min to logsnr_max; None takes the model's bounds. rounded: see the module."""

    logsnr_min: Any = None
    logsnr_max: Any = None
    rounded: Any = True

    def __post_init__(self) -> None:
        check_bounds(self, "logsnr_min", "logsnr_max")
        check_rounded(self.rounded)

    def __call__(self, levels: Process, num_steps: int | np.integer | str) -> Float64[np.ndarray, " t"]:
        low = levels.logsnr_min if self.logsnr_min is None else self.logsnr_min
        high = levels.logsnr_max if self.logsnr_max is None else self.logsnr_max
        check_within("logsnr", "λ", (low, high), (levels.logsnr_min, levels.logsnr_max))
        return at_levels(self, levels, np.linspace(low, high, count(self, num_steps)))


@dataclass(frozen=True, repr=False)
class flow(Spec):
    """t' = k t / (1 + (k−1) t) for equally spaced flow times t = σ/(α+σ), k = shift; Esser et al. 2024 (2403.03206).

    t' lies between the flow times of the model's bounds, both included. shift: in [0.001, 1000]; above 1 it has more
    levels at large noise. A shift divides the signal-to-noise ratio: λ' = λ − 2 log k. rounded: see the module.
    """

    shift: Any = 1.0
    rounded: Any = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "shift", number("shift", self.shift, 0.001, 1000))
        check_rounded(self.rounded)

    def __call__(self, levels: Process, num_steps: int | np.integer | str) -> Float64[np.ndarray, " t"]:
        ends = np.array([levels.logsnr_min, levels.logsnr_max]) + 2 * np.log(self.shift)  # before the shift
        first, last = 1 / (1 + np.exp(0.5 * ends))
        first_complement, last_complement = 1 / (1 + np.exp(-0.5 * ends))  # 1 − t, with its digits near t = 1
        fraction = np.linspace(0.0, 1.0, count(self, num_steps))
        time = first + fraction * (last - first)
        complement = first_complement + fraction * (last_complement - first_complement)
        return at_levels(self, levels, 2 * np.log(complement / time) - 2 * np.log(self.shift))


GRIDS: dict[str, Any] = {"schedule": schedule, "edm": edm, "uniform": uniform, "flow": flow}


def noise_to_signal(logsnr: float) -> float:
    """Returns ς = σ/α = e^(−λ/2)."""
    return float(np.exp(-0.5 * logsnr))


def check_bounds(grid: Spec, low: str, high: str, least: float = -np.inf) -> None:
    """Makes two fields of a grid floats. Raises UsageError unless each is None or a number that is not below least."""
    for name in (low, high):
        if (value := getattr(grid, name)) is not None:
            object.__setattr__(grid, name, number(name, value, least))


def check_rounded(rounded: Any) -> None:
    """Raises UsageError unless rounded is a boolean."""
    if not isinstance(rounded, bool):
        raise UsageError(f"rounded is {rounded!r}; need True or False")


def check_within(name: str, letter: str, given: tuple[float, float], trained: tuple[float, float]) -> None:
    """Raises ValueError unless the bounds (low, high) of a grid are in order and within those of training."""
    low, high = given
    if not low < high:
        raise ValueError(f"{name}_min {low:g} is not below {name}_max {high:g}")
    span = f"the model was trained on {letter} from {trained[0]:.6g} to {trained[1]:.6g}"
    if low < trained[0] - TOLERANCE * abs(trained[0]):
        raise ValueError(f"{name}_min is {low:g}; {span}")
    if high > trained[1] + TOLERANCE * abs(trained[1]):
        raise ValueError(f"{name}_max is {high:g}; {span}")


def count(grid: Spec, num_steps: int | np.integer | str) -> int:
    """Returns the number of levels T. Raises ValueError for a selection of timesteps."""
    if not isinstance(num_steps, int | np.integer):
        raise ValueError(f"num_steps is {num_steps!r}; the grid {grid!r} takes a number of steps")
    return int(num_steps)


def at_levels(grid: Any, levels: Process, logsnrs: Float64[np.ndarray, " t"]) -> Float64[np.ndarray, " t"]:
    """Returns λ within the trained ones, rounded to those of timesteps if grid and process say so.

    Raises ValueError if two levels are rounded to the same timestep.
    """
    logsnrs = np.clip(logsnrs, levels.logsnr_min, levels.logsnr_max)  # rounding errors, and TOLERANCE
    if not isinstance(levels, Discrete) or not grid.rounded:
        return logsnrs
    table = levels.table
    timesteps = nearest_timesteps(logsnrs, table)
    if np.all(np.diff(timesteps) < 0):
        return table[timesteps]
    most = largest_number(grid, levels, len(logsnrs))
    raise ValueError(
        f"num_steps is {len(logsnrs)}; the grid {grid!r} has at most {most} levels at different timesteps, "
        "unless rounded=False"
    )


def nearest_timesteps(logsnrs: Float64[np.ndarray, " t"], table: Float64[np.ndarray, " k"]) -> np.ndarray:
    """Returns the timestep nearest to each λ, where λ_t is continued linearly between timesteps."""
    return np.rint(np.interp(logsnrs, table[::-1], np.arange(len(table) - 1, -1, -1))).astype(int)


def largest_number(grid: Any, levels: Discrete, num_steps: int) -> int:
    """Returns the largest number of levels below num_steps whose timesteps differ."""
    exact, table = type(grid)(**{**vars(grid), "rounded": False}), levels.table
    for fewer in range(min(num_steps - 1, levels.num_timesteps), 2, -1):
        if np.all(np.diff(nearest_timesteps(exact(levels, fewer), table)) < 0):
            return fewer
    return 2
