"""The section `diffusion` of a config: the process, and how a network is trained on it."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from cfgjax.base.errors import UsageError, choose
from cfgjax.runs.values import Levels, NotNegative, Number, Share, Text, integer

CONTINUOUS = ("schedule", "logsnr_min", "logsnr_max")
DISCRETE = ("betas", "num_timesteps")
TIME_SAMPLERS = ("uniform", "second_moment")
LATER_KEYS = {"parametrisation": "eps", "weighting": "eps"}  # of experiments, with the values of runs that lack them


@dataclasses.dataclass(frozen=True)
class DiffusionSettings:
    """config.diffusion.

    schedule, logsnr_min, logsnr_max: a process in continuous λ, see `levels.Continuous`; or
    betas, num_timesteps: one in discrete time, see `levels.Discrete`.
    p_uncond: probability of dropping a label in training.
    parametrisation, weighting: what the network predicts, and the weight of the loss at each level. Like schedule, each
    is the text of an entry of its registry (`PARAMETRISATIONS`, `WEIGHTINGS`, `SCHEDULES`): "edm(data_std=0.5)".
    learned_variance: the network has 2C outputs, and its loss is the hybrid one: L_simple + bound_weight · L_vlb. The
    bound is that of bound_steps levels (in continuous λ; T in discrete time); IDDPM (arXiv:2102.09672) section 3.
    time_sampler: of training levels, "uniform" in u, or by the "second_moment" of the loss there; IDDPM section 3.3.
    low_res_logsnr_min: of an upsampler with model.low_res_noise, the noisiest λ of its low-resolution images.
    """

    p_uncond: Share = 0.0
    parametrisation: Text = "eps"
    weighting: Text = "eps"
    schedule: Text | None = None
    logsnr_min: Number | None = None
    logsnr_max: Number | None = None
    betas: Text | None = None
    num_timesteps: Levels | None = None
    learned_variance: bool = False
    bound_weight: NotNegative = 0.001
    bound_steps: Annotated[int, integer(2)] = 1000
    time_sampler: Text = "uniform"
    low_res_logsnr_min: Number | None = None

    def __post_init__(self) -> None:
        from cfgjax.diffusion.discrete import BETAS  # imports jax
        from cfgjax.diffusion.schedules import parse_schedule
        from cfgjax.diffusion.specs import shortest
        from cfgjax.diffusion.weightings import WEIGHTINGS

        continuous, discrete = ([n for n in names if getattr(self, n) is not None] for names in (CONTINUOUS, DISCRETE))
        if bool(continuous) == bool(discrete):
            both = f"{', '.join(CONTINUOUS)} (continuous λ) or {', '.join(DISCRETE)} (discrete time)"
            given = f"{', '.join(continuous + discrete) or 'neither'} given"
            raise UsageError(f"config.diffusion needs {both}; {given}")
        missing = [n for n in (CONTINUOUS if continuous else DISCRETE) if getattr(self, n) is None]
        if missing:
            raise UsageError(f"config.diffusion lacks {', '.join(missing)}")
        if self.logsnr_min is not None and self.logsnr_max is not None:
            parse_schedule(str(self.schedule))
            if not self.logsnr_min < self.logsnr_max:
                raise UsageError(
                    f"diffusion.logsnr_min {self.logsnr_min} is not below diffusion.logsnr_max {self.logsnr_max}"
                )
        else:
            choose("betas", self.betas, BETAS)
        try:
            self.levels  # noqa: B018  it checks itself
        except ValueError as e:
            raise UsageError(f"config.diffusion: {e}") from None
        weighting = shortest(self.weighting, WEIGHTINGS, "weighting")
        for name, given in (("parametrisation", self.predicts), ("weighting", weighting)):
            if self.learned_variance and given != "eps":
                both = f"diffusion.{name} is {given!r}, diffusion.learned_variance True"
                raise UsageError(f"{both}; the hybrid loss of a learned variance is defined in ε alone: need 'eps'")
        choose("time sampler", self.time_sampler, dict.fromkeys(TIME_SAMPLERS))

    @property
    def levels(self) -> Any:
        """Returns the process, a `levels.Continuous` or `levels.Discrete`."""
        from cfgjax.diffusion.levels import Continuous, Discrete  # imports jax

        if self.betas is not None:
            return Discrete(self.betas, self.num_timesteps)  # type: ignore[arg-type]
        return Continuous(self.schedule, self.logsnr_min, self.logsnr_max, self.bound_steps)  # type: ignore[arg-type]

    @property
    def predicts(self) -> str:
        """Returns the shortest text of the parametrisation, which is equal for equal ones."""
        from cfgjax.diffusion.prediction import PARAMETRISATIONS  # imports jax
        from cfgjax.diffusion.specs import shortest

        return shortest(self.parametrisation, PARAMETRISATIONS, "parametrisation")

    @property
    def described(self) -> str:
        """Returns the process in a few words, which are equal for equal processes."""
        if self.betas is not None:
            return f"{self.num_timesteps} timesteps of {self.betas} betas"
        from cfgjax.diffusion.schedules import SCHEDULES  # imports jax
        from cfgjax.diffusion.specs import shortest

        schedule = shortest(str(self.schedule), SCHEDULES, "schedule")
        return f"{schedule} λ in [{self.logsnr_min:g}, {self.logsnr_max:g}]"


def without_later_keys(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of config.diffusion without those of LATER_KEYS that have the values of runs that lack them."""
    return {key: value for key, value in given.items() if key not in LATER_KEYS or value != LATER_KEYS[key]}
