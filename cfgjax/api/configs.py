"""Configs from Python: `cfgjax.config("digits", train=dict(num_steps=100))`."""

from typing import Any

from ml_collections import ConfigDict

from cfgjax.base.storage import Place
from cfgjax.runs.config import flatten, load_config


def config(experiment: str | Place, **changes: Any) -> ConfigDict:
    """Returns the locked ConfigDict of an experiment with changes to its values.

    experiment: the name of an installed experiment, see `cfgjax.experiments`, or the path of a config file. changes:
    the new values of keys by section, such as config("digits", train=dict(num_steps=100), seed=1). Raises UsageError
    for a file that cannot be loaded, and for an unknown key or an invalid value.
    """
    return load_config(experiment, **flatten(changes))
