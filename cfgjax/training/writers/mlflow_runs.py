"""The writer of MLflow."""

import os
import time
from collections.abc import Mapping

import numpy as np

from cfgjax.base.errors import UsageError
from cfgjax.base.storage import Place, absolute, is_url
from cfgjax.runs.config import flatten
from cfgjax.runs.settings import Settings
from cfgjax.training.writers.remote import RemoteRun, need

MOST_CHARACTERS = 500  # of a parameter's value
MOST_PARAMETERS = 100  # of a request


class MLflowRun(RemoteRun):
    """A run of the experiment config.log.project, at MLFLOW_TRACKING_URI or in workdir/mlruns."""

    service = "mlflow"

    def __init__(self, workdir: Place, start_step: int, settings: Settings) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        super().__init__(workdir)
        if not (address := os.environ.get("MLFLOW_TRACKING_URI")):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # files need no database package
            address = (workdir.resolve() / "mlruns").as_uri()
        self._client = MlflowClient(address)
        self._last, self._step = settings.train.num_steps, start_step
        if self.identity:
            self._client.update_run(self.identity, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(settings.log.project)
        name = experiment.experiment_id if experiment else self._client.create_experiment(settings.log.project)
        self.set_identity(self._client.create_run(name, run_name=absolute(workdir).name).info.run_id)
        given = [Param(key, str(value)[:MOST_CHARACTERS]) for key, value in flatten(settings.to_dict()).items()]
        for start in range(0, len(given), MOST_PARAMETERS):
            self._client.log_batch(self.identity, params=given[start : start + MOST_PARAMETERS])

    @staticmethod
    def check() -> None:
        """Raises UsageError if the package is not installed."""
        need("mlflow", "mlflow")

    @staticmethod
    def check_workdir(workdir: Place) -> None:
        """Raises UsageError if the run would be written to a workdir in a bucket."""
        if is_url(workdir) and not os.environ.get("MLFLOW_TRACKING_URI"):
            needed = "set it to the address of a server, or use a workdir on a disk"
            raise UsageError(
                f"config.log.writers: mlflow needs MLFLOW_TRACKING_URI for the workdir {workdir}; {needed}"
            )

    def send(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs metrics."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(
            self.identity, metrics=[Metric(name, value, now, step) for name, value in metrics.items()]
        )
        self._step = step

    def send_image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Logs a picture, uint8 [H, W, C]."""
        self._client.log_image(self.identity, picture, key=name, step=step)

    def close(self) -> None:
        """Marks the run as finished, or as killed if it is to be resumed."""
        self.send_all()
        self._client.set_terminated(self.identity, "FINISHED" if self._step >= self._last else "KILLED")
