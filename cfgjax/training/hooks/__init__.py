"""What happens every n steps of a training run by its config: pictures and metrics of the averaged parameters.

A hook does its part once per step, also where a run is resumed at that step.
"""

from jax.sharding import Mesh

from cfgjax.base.errors import UsageError
from cfgjax.data.dataset import Dataset
from cfgjax.runs.settings import Settings
from cfgjax.training.hooks.frontier_metrics import FrontierMetrics
from cfgjax.training.hooks.held_out import HeldOut
from cfgjax.training.hooks.noisy_held_out import NoisyHeldOut
from cfgjax.training.hooks.sample_grids import SampleGrids


def make_hooks(settings: Settings, mesh: Mesh, dataset: Dataset) -> list:
    """Returns the hooks of a run, checked against its settings."""
    if settings.is_noisy_classifier:
        return [NoisyHeldOut(settings, mesh)]
    if settings.is_classifier:
        return [HeldOut(settings, mesh)]
    grids = SampleGrids(settings, mesh, dataset)
    latents = settings.data.kind == "latent"  # which cannot be drawn
    hooks: list = [] if latents else [grids]
    if settings.evaluate.every_steps:
        if settings.data.low_res_size is not None:
            what = "an upsampler alone draws nothing to be measured"
            raise UsageError(f"evaluate.every_steps is set; {what}: set it to None")
        if dataset.conditions:
            what = f"evaluations cannot give samples the conditions besides the label ({', '.join(dataset.conditions)})"
            raise UsageError(f"evaluate.every_steps is set; {what}: set it to None")
        hooks.append(FrontierMetrics(settings, mesh, dataset))
    return hooks
