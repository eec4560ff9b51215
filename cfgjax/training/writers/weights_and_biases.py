"""The writer of Weights & Biases."""

import os
import tempfile
import uuid
from collections.abc import Mapping

import numpy as np

from cfgjax.base.errors import UsageError
from cfgjax.base.storage import Place, absolute, is_url
from cfgjax.runs.settings import Settings
from cfgjax.training.writers.remote import RemoteRun, need


class WeightsAndBiases(RemoteRun):
    """A run in the project config.log.project. WANDB_MODE=offline writes it to workdir/wandb, for `wandb sync`."""

    service = "wandb"

    def __init__(self, workdir: Place, start_step: int, settings: Settings) -> None:
        import wandb

        super().__init__(workdir)
        if not self.identity:
            self.set_identity(uuid.uuid4().hex[:8])
        self._run = wandb.init(
            project=settings.log.project,
            id=self.identity,
            name=absolute(workdir).name,
            config=settings.to_dict(),
            dir=tempfile.mkdtemp(prefix="cfgjax-wandb-") if is_url(workdir) else str(workdir),  # a copy of what is sent
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )

    @staticmethod
    def check() -> None:
        """Raises UsageError if the package is not installed, or has no login and is not offline."""
        wandb = need("wandb", "wandb")
        if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
            return
        if not wandb.login(prompt=False, verify=False):
            raise UsageError("config.log.writers: wandb has no login; run `wandb login`, or set WANDB_MODE=offline")

    @staticmethod
    def check_workdir(workdir: Place) -> None:
        """Raises UsageError if the run would be written to a workdir in a bucket."""
        if not is_url(workdir):
            return
        wandb = need("wandb", "wandb")
        mode = os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
        if mode in ("offline", "dryrun"):
            what = f"wandb in offline mode (WANDB_MODE={mode}) cannot write to the workdir {workdir}"
            raise UsageError(f"config.log.writers: {what}; set WANDB_MODE=online, or use a workdir on a disk")

    def send(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs metrics."""
        self._run.log(dict(metrics), step=step)

    def send_image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Logs a picture, uint8 [H, W, C]."""
        import wandb

        self._run.log({name: wandb.Image(picture)}, step=step)

    def close(self) -> None:
        """Finishes the process's part of the run."""
        self.send_all()
        self._run.finish()
