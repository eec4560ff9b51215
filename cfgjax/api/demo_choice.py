"""What a visitor of the demo has chosen: its picture, and the command and the Python lines that make it."""

import shlex
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from cfgjax.base.errors import UsageError
from cfgjax.base.storage import Place
from cfgjax.data.batches import to_uint8
from cfgjax.models.class_names import short_name
from cfgjax.models.model import Model
from cfgjax.models.sample_figures import image_grid

DEMO_PIXELS = 64  # of the smallest images
MAX_LEVELS_SHOWN = 12  # of a trajectory


@dataclass(frozen=True)
class DemoChoice:
    """The options of a picture in the demo. labels: its rows, of per_label samples. The rest: of `SampleOptions`."""

    labels: tuple[int, ...]
    per_label: int
    guidance: float
    rule: str
    sampler: str
    num_steps: int
    grid: str
    seed: int

    def samples(self, model: Model, **options: Any) -> Any:
        """Returns what `Model.sample` returns. The rule is used as it is, also at w = 0, so that w compiles nothing."""
        if not self.labels:
            raise UsageError("choose at least one class")
        labels = np.repeat(self.labels, self.per_label)
        chosen: dict[str, Any] = {"rule": self.rule, "sampler": self.sampler, "grid": self.grid}
        return model.sample(labels, self.guidance, num_steps=self.num_steps, seed=self.seed, **chosen, **options)

    def pictures(self, model: Model) -> tuple[Image.Image, Image.Image]:
        """Returns the samples, a row for each class, and x̃ of the first of each class at some levels."""
        images, trajectory = self.samples(model, return_trajectory=True)
        names = [short_name(label, model.classes) for label in self.labels]
        rows = images.reshape(len(self.labels), 1, self.per_label, *images.shape[1:])
        shown = np.unique(np.linspace(0, len(trajectory.x) - 1, MAX_LEVELS_SHOWN).round().astype(int))
        levels = to_uint8(trajectory.x[shown][:, :: self.per_label]).swapaxes(0, 1)[:, :, None]
        heads = [f"λ={trajectory.logsnr[t]:.1f}" for t in shown]
        picture = image_grid(rows, names, [f"w={self.guidance:g}, {self.rule}"], DEMO_PIXELS)
        return picture, image_grid(levels, names, heads)

    def command(self, workdir: str | Place) -> str:
        """Returns the command that draws the same samples."""
        flags = {
            "workdir": workdir,
            "labels": ",".join(map(str, self.labels)),
            "per_cell": self.per_label,
            "guidance": f"{self.guidance:g}",
            "rule": self.rule,
            "sampler": self.sampler,
            "num_steps": self.num_steps,
            "grid": self.grid,
            "seed": self.seed,
        }
        return " ".join(["cfgjax sample", *(shlex.quote(f"--{name}={value}") for name, value in flags.items())])

    def python(self, workdir: str | Place) -> str:
        """Returns the Python lines that draw the same samples."""
        labels = [label for label in self.labels for _ in range(self.per_label)]
        return "\n".join(
            [
                "import cfgjax",
                "",
                f"model = cfgjax.load({str(workdir)!r})",
                f"images = model.sample({labels}, guidance={self.guidance:g}, rule={self.rule!r},",
                f"                      sampler={self.sampler!r}, num_steps={self.num_steps}, grid={self.grid!r},",
                f"                      seed={self.seed})",
            ]
        )
