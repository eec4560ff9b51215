"""Every experiment file constructs, and trains one shrunk step."""

import inspect
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import EXPERIMENTS, update

from cfgjax.config import CLASSIFIER_SECTIONS, SECTIONS, check_sections, flatten, from_json, load_file, to_json
from cfgjax.network import check_network, is_classifier, make_network
from cfgjax.training.loop import Run
from cfgjax.training.state import create_state

FILES = sorted(EXPERIMENTS.glob("*.py"))
SIZES = {"imagenet64": 295_899_267 + 4 * 192, "imagenet128": 421_522_691 + 4 * 256}  # math of ADM, plus the null row


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def name(request):
    return request.param.stem


def shrink(config, folder):
    """config with one small step on random data, everything else as it is."""
    small = {"train.batch_size": 8, "train.num_steps": 1, "train.log_every_steps": 1, "train.steps_per_dispatch": 1}
    small |= {"checkpoint.every_steps": 1}
    small |= {"evaluate.every_steps": 1} if is_classifier(config) else {"sample.every_steps": 1}
    if config.model.name == "unet":
        small |= {"model.channels": 64, "model.depth": 1, "model.multipliers": config.model.multipliers[:1]}
        small |= {"data.image_shape": (2, 2, config.data.image_shape[-1]), "model.attention_resolutions": (2,)}
    config = update(config, small)
    if config.data.source != "mixture":
        shape, classes = config.data.image_shape, config.data.num_classes
        rng = np.random.default_rng(0)
        arrays = {"image": rng.integers(0, 256, (8, *shape), np.uint8), "label": rng.integers(0, classes, 8)}
        np.savez(folder / "data.npz", **arrays)
        config.data = type(config)({"source": "npz", "path": str(folder / "data.npz"), "num_classes": classes})
        config.data.update(image_shape=shape, split="train" if is_classifier(config) else "all")
    return config


def test_one_shrunk_step_is_finite_and_changes_the_parameters(name, tmp_path):
    run = Run(shrink(load_file(EXPERIMENTS / f"{name}.py"), tmp_path), jax.devices()[:1])
    state = create_state(run.build_state, run.mesh)
    before = jax.device_get(state.params)
    state, metrics = run.dispatch(state, run.batches(0), run.step_key)
    assert np.isfinite(metrics["loss"]).all()
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, jax.device_get(state.params))
    expected = run.config.optimizer.warmup_steps == 0  # a warm-up begins at learning rate 0
    assert any(jax.tree.leaves(changed)) == expected


def test_files_state_every_section_and_survive_json(name):
    config = load_file(EXPERIMENTS / f"{name}.py")
    check_sections(config, CLASSIFIER_SECTIONS if is_classifier(config) else SECTIONS)
    assert flatten(from_json(to_json(config))) == flatten(config)


def test_files_begin_with_the_command_that_runs_them(name):
    text = (EXPERIMENTS / f"{name}.py").read_text()
    assert f"cfgjax train --config=experiments/{name}.py --workdir=runs/{name}" in text


def test_every_value_of_the_network_is_present(name):
    config = load_file(EXPERIMENTS / f"{name}.py")
    net = type(make_network(config))
    fields = inspect.signature(net).parameters.keys() - {"parent", "name", "num_classes", "out_channels"}
    assert fields == set(config.model.keys()) - {"name"}


@pytest.mark.parametrize("name", SIZES)
def test_paper_networks_have_the_papers_size(name):
    config = load_file(EXPERIMENTS / f"{name}.py")
    shapes = check_network(make_network(config), config.data.image_shape)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == SIZES[name]


def test_readme_names_every_experiment():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert all(f"experiments/{path.name}" in readme for path in FILES)
