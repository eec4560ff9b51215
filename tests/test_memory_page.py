"""docs/performance.md has what benchmarks/memory.py makes of its figures, and memory does not grow with the data."""

import json
from pathlib import Path

import jax
import pytest
from tiny import CONFIGS, mixture_config

from cfgjax.jobs.preflight.step_figures import batch_figures, memory_figures
from cfgjax.runs.config import load_file
from cfgjax.training.run import Program, Run

ROOT = Path(__file__).parents[1]
MEASURED = json.loads((ROOT / "docs" / "memory.json").read_text())
UNETS = ["digits_noisy_classifier", "digits"]
FIGURES = {found["experiment"]: found for found in MEASURED["experiments"]}


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import memory

    return memory


def test_the_section_equals_the_output_of_the_script(memory):
    page = (ROOT / "docs" / "performance.md").read_text()
    assert memory.document(page, MEASURED) == page
    assert "{{" not in page


def test_every_experiment_is_listed_once_with_its_own_batch(memory):
    assert [found["experiment"] for found in MEASURED["experiments"]] == memory.NAMES
    for name, found in FIGURES.items():
        config = load_file(CONFIGS[name])
        assert found["batch"]["global"] == config.train.batch_size
        assert found["devices"] == memory.devices_of(config)


@pytest.mark.parametrize(
    "name", ["mixture", "digits_classifier", *(pytest.param(n, marks=pytest.mark.slow) for n in UNETS)]
)
def test_counts_are_those_of_the_experiment(name):
    program = Program(load_file(CONFIGS[name]), jax.devices()[:1])
    counted = memory_figures(program) | {"batch": batch_figures(program)}
    assert {figure: FIGURES[name][figure] for figure in counted} == json.loads(json.dumps(counted))


def test_the_step_is_one_program_whatever_the_number_of_examples():
    def text(num_examples):
        run = Run(mixture_config(**{"data.num_examples": num_examples}))
        return run.dispatch.lower(run.like, run.batches(0), run.step_key).as_text()

    assert text(256) == text(2560)


@pytest.mark.e2e
def test_the_memory_for_batches_of_a_prepared_set_does_not_grow_with_its_images(memory):
    pytest.importorskip("array_record")
    stored, in_memory = (memory.growth(source, num_examples=3000) for source in ("prepared", "npz"))
    assert stored["image_bytes"] == in_memory["image_bytes"] == 768
    assert stored["per_example"] < 768 / 3  # labels, permutations, places of records, and the noise of such a figure
    assert in_memory["per_example"] > 768 / 2  # the measure sees what lies in memory
