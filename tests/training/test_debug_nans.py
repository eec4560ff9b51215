"""Training, sampling and evaluation compute no NaN on the way: they run under JAX_DEBUG_NANS=1.

Which steps drop no label, or have no example of a level, is a matter of chance: a batch of two meets both at once.
"""

import dataclasses

import jax
import numpy as np
import pytest
from tiny import digits_config, mixture_config, update

from cfgjax.evaluation.frontier.generate import draw_samples
from cfgjax.models.model import Model
from cfgjax.runs.config import load_file
from cfgjax.training.loop import Run
from cfgjax.training.state import create_state
from cfgjax.training.step_metrics import fetch

pytestmark = pytest.mark.slow

SMALL = {"train.batch_size": 2, "train.steps_per_dispatch": 1, "train.log_every_steps": 1, "mesh.data": 1}
SMALL |= {"optimizer.warmup_steps": 1}


def noisy_classifier():
    config = load_file("experiments/digits_noisy_classifier.py")
    return update(config, {**SMALL, "model.depth": 1, "model.channels": 32})


def adm():
    config = load_file("experiments/digits_adm.py")
    return update(config, {**SMALL, "model.depth": 1, "model.channels": 32})


CONFIGS = {
    "mixture": lambda: mixture_config(**SMALL),
    "second moment": lambda: mixture_config(**SMALL, **{"diffusion.time_sampler": "second_moment"}),
    "digits": lambda: digits_config(**SMALL),
    "learned variance": adm,
    "noisy classifier": noisy_classifier,
}


@pytest.fixture
def debug_nans():
    with jax.debug_nans(True):
        yield


@pytest.mark.parametrize("name", CONFIGS)
def test_training_and_sampling_compute_no_nan(name, debug_nans):
    config = CONFIGS[name]()
    run = Run(config, jax.devices()[:1])
    state, empty = create_state(run.build_state, run.mesh), 0
    for step in range(3):
        state, metrics = run.dispatch(state, run.batches(step), run.step_key)
        (logged,), _ = fetch([metrics])
        assert np.isfinite(list(logged.values())).all()
        empty += logged.get("drop_rate") == 0 or logged.get("accuracy_0_share") == 0
    run.close()
    if name != "learned variance":
        assert empty
    if not run.settings.is_classifier:
        model = Model(config, state.params, mesh=run.mesh)
        rule = "cfg()" if model.has_null_label else "conditional()"
        changes = dict(guidance=1.0 * model.has_null_label, num_steps=3, rule=rule, label_policy="random")
        drawn = draw_samples(model, dataclasses.replace(model.options, **changes), np.arange(3), 2)
        assert sum(len(index) for index, _, _ in drawn) == 3
