"""The page about guidance: docs/guidance.md."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from cfgjax.diffusion.grids import GRIDS
from cfgjax.diffusion.guidance import RULES
from cfgjax.diffusion.samplers import SAMPLERS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield load_script()


def load_script():
    spec = importlib.util.spec_from_file_location("guidance_script", ROOT / "benchmarks/guidance.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_from_its_template_and_the_stored_results(script):
    assert (ROOT / "docs/guidance.md").read_text() == script.document()


def test_the_page_describes_every_rule_sampler_and_grid():
    text = (ROOT / "docs/guidance.md").read_text()
    headings = [line for line in text.splitlines() if line.startswith("### ")]
    described = {name for name in RULES if any(f"`{name}(" in heading for heading in headings)}
    assert described == set(RULES)
    for name in [*SAMPLERS, *GRIDS]:
        assert f"\n| `{name}(" in text, name


@pytest.mark.slow
def test_every_panel_of_the_mixture_is_sampled_and_an_exact_classifier_gives_the_samples_of_cfg(script, monkeypatch):
    monkeypatch.setattr(script, "COUNT", 80)
    monkeypatch.setattr(script, "STEPS", 8)
    _, panels = script.mixture_panels()
    x = {(panel["rule"], panel["sampler"]): panel["x"] for panel in panels}
    assert len(x) == len(script.PANELS) and all(np.isfinite(samples).all() for samples in x.values())
    by_classifier = x["classifier(conditional(), scale=1.5)", "dpmpp_2m()"]
    np.testing.assert_allclose(by_classifier, x["cfg()", "dpmpp_2m()"], atol=1e-3)
