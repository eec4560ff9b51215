"""Loads trained networks from workdirs."""

from jax.sharding import Mesh

from cfgjax.base.errors import UsageError
from cfgjax.base.storage import Place
from cfgjax.distributed.cpu_devices import use_cores
from cfgjax.distributed.sharding import make_mesh, place_parameters
from cfgjax.models.class_names import known_classes
from cfgjax.models.guide import Guide
from cfgjax.models.model import Model
from cfgjax.models.network import check_params
from cfgjax.models.weak import WeakRun, check_weak, parse_weak
from cfgjax.runs.averages import find_average, load_params
from cfgjax.runs.settings import Settings
from cfgjax.runs.workdir import read_settings


def load(workdir: str | Place, step: int | None = None, ema: float | None = None, mesh: Mesh | None = None) -> Model:
    """Returns the `Model` of a run, with the parameters of a checkpoint.

    workdir: the folder of the run, or of an exported model. step: that of the checkpoint; by default the newest that is
    complete. ema: the average of the parameters: a rate of config.ema.rates, or 0 for no averaging; by default the
    run's first rate, else its first width. Another number up to 0.2887 is the relative width σ_rel of a power-function
    average, for a run with config.ema.widths: it is computed from the run's snapshots, and `step` may be that of a
    snapshot. mesh: the devices, see `sharding.make_mesh`; by default all. The cores of a CPU then become devices,
    unless the number of devices was set or jax has been used before. Raises UsageError if there is no such run, step or
    average, or if it is a run of a classifier.
    """
    settings = check_draws(workdir)
    mesh, average = default_mesh() if mesh is None else mesh, find_average(workdir, settings, step, ema)
    params = average.read()
    check_params(workdir, settings, params)
    return Model(
        settings,
        place_parameters(mesh, params),
        step=average.step,
        ema=average.ema,
        mesh=mesh,
        workdir=workdir,
        classes=known_classes(workdir, settings),
    )


def default_mesh() -> Mesh:
    """Returns the mesh of all devices. If jax has not been used, the cores of a CPU become devices."""
    use_cores()
    return make_mesh()


def check_draws(workdir: str | Place) -> Settings:
    """Returns the settings of the run in workdir. Raises UsageError if it is that of a classifier."""
    settings = read_settings(workdir)
    if settings.is_classifier:
        raise UsageError(
            f"{workdir} holds a classifier ({settings.model.name}), which draws no samples; need a diffusion model"
        )
    return settings


def use_average(model: Model, workdir: str | Place, ema: float) -> None:
    """Replaces the parameters of a run's model by those of another average of the same step. See `load`."""
    if ema != model.ema:
        model.put(load_params(workdir, model.settings, model.step, ema)[0])
        model.ema = ema


def load_guide(workdir: str | Place, step: int | None = None, ema: float | None = None) -> Guide:
    """Returns the `Guide` of a noise-aware classifier's run, for the rule `classifier(guide=…)`.

    workdir, step, ema: see `cfgjax.load`. Raises UsageError if there is no such run, step or average, or if the run is
    not that of a noise-aware classifier.
    """
    settings = read_settings(workdir)
    if not settings.is_noisy_classifier:
        raise UsageError(f"{workdir} holds a {settings.model.name}, not a noise-aware classifier (noisy_classifier)")
    use_cores()
    params, step = load_params(workdir, settings, step, ema)
    check_params(workdir, settings, params)
    return Guide(settings, params, step=step)


def load_weak(text: str, settings: Settings, mesh: Mesh | None = None) -> WeakRun:
    """Returns the `WeakRun` of WORKDIR[@STEP][,ema=RATE], to guide a model with these settings. mesh: of both.

    Raises UsageError if there is no such run, step or rate, or if its model does not fit, before parameters are read.
    """
    workdir, step, ema = parse_weak(text)
    own = read_settings(workdir)
    if not own.is_classifier:
        check_weak(own, settings)
    return WeakRun(load(workdir, step, ema, mesh), workdir)
