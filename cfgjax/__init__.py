"""cfgjax: classifier-free guidance in JAX.

>>> run = cfgjax.train(cfgjax.config("digits", train=dict(num_steps=200)), "runs/digits")
>>> model = cfgjax.load("runs/digits")
>>> images = model.sample(labels=[3, 3, 8], guidance=1.0)  # uint8 [3, 8, 8, 1]
>>> cfgjax.evaluate("runs/digits", guidance=(0, 0.5, 1), classifier="runs/digits_classifier")
"""

import importlib
from typing import Any

__version__ = "0.1.0.dev0"
PUBLIC = {  # name: the module that defines it, imported when the name is first used; `import cfgjax` imports no jax
    "load": "cfgjax.models.loading",
    "load_guide": "cfgjax.models.loading",
    "load_weak": "cfgjax.models.loading",
    "load_config": "cfgjax.runs.config",
    "config": "cfgjax.api.configs",
    "experiments": "cfgjax.base.experiments",
    "train": "cfgjax.api.training_runs",
    "evaluate": "cfgjax.api.evaluations",
}
MODULES = {"guidance": "cfgjax.diffusion.guidance", "samplers": "cfgjax.diffusion.samplers"}
__all__ = ["__version__", *MODULES, *PUBLIC]


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return importlib.import_module(MODULES[name])
    if name in PUBLIC:
        return getattr(importlib.import_module(PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES, *PUBLIC})
