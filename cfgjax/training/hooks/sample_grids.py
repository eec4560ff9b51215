"""Pictures of samples while training."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from cfgjax.base.files import writing
from cfgjax.base.plots_extra import require_matplotlib
from cfgjax.base.storage import Place
from cfgjax.data.batches import squares_averaged, to_float
from cfgjax.data.dataset import Dataset
from cfgjax.data.sources.registry import check_labels
from cfgjax.distributed import collectives
from cfgjax.models.groups import check_divisible
from cfgjax.models.model import Model
from cfgjax.models.resolving import resolved_combinations
from cfgjax.models.sample_figures import sample_figure
from cfgjax.runs.sample_options import axes
from cfgjax.runs.settings import Settings
from cfgjax.training.log import RunLog
from cfgjax.training.state import TrainState, averaged_params


class SampleGrids:
    """Draws samples/step_*.png, each atomically."""

    section = "sample"

    def __init__(self, settings: Settings, mesh: Mesh, dataset: Dataset) -> None:
        self._model = Model(settings, None, mesh=mesh)
        self.pictures = self._model.defaults
        self.every_steps = self.pictures.every_steps
        check_labels(np.asarray(self.pictures.labels), settings.data.num_classes, "sample.labels entry")
        if len(settings.data.image_shape) != 3:
            require_matplotlib()
        self._columns = resolved_combinations(axes(self.pictures.options), self._model)
        for column in self._columns:
            check_divisible(f"sample.per_cell {self.pictures.per_cell} is", self.pictures.per_cell, column.sampler)
        self._options: dict[str, Any] = {}
        if (shape := self._model.low_res_shape) is not None:
            images, factor = dataset.images(self._examples(dataset)), dataset.image.shape[1] // shape[0]
            self._options["low_res"] = squares_averaged(to_float(images), factor)
        if dataset.conditions:
            index = self._examples(dataset)
            self._options["conditions"] = {name: array[index] for name, array in dataset.conditions.items()}

    def _examples(self, dataset: Dataset) -> Int[np.ndarray, " n"]:
        """Returns indices of examples whose conditions the grids have, as many of each label as a cell has."""
        found = []
        for label in self.pictures.labels:
            index = np.flatnonzero(dataset.label == label)
            found.append(np.resize(index if len(index) else np.arange(len(dataset)), self.pictures.per_cell))
        return np.concatenate(found)

    def __call__(self, state: TrainState, step: int, workdir: Place, runlog: RunLog) -> None:
        path, pictures = workdir / "samples" / f"step_{step:08}.png", self.pictures
        if collectives.decided(path.exists, f"whether {path.name} is there"):
            return
        self._model.params = averaged_params(state, self._model.settings.ema.default_name)
        shown: dict = dict(labels=pictures.labels, per_cell=pictures.per_cell)
        picture = sample_figure(self._model, self._columns, **shown, **self._options)
        if jax.process_index() == 0:
            path.parent.mkdir(exist_ok=True)
            with writing(path) as new:
                picture.save(new)
        runlog.image(step, "samples", picture)
        runlog.say(f"wrote {path}")
