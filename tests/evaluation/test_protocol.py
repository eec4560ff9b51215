"""The protocol of a result: what it names, its units, and the network evaluations of a sample."""

import dataclasses
import json
import math

import numpy as np
import pytest

from cfgjax.diffusion.guidance import cfg, conditional, interval, rescale
from cfgjax.diffusion.samplers import ancestral, ddim
from cfgjax.evaluation.frontier.cost import network_evaluations
from cfgjax.evaluation.report import protocol as cards
from cfgjax.evaluation.report.frontier_files import write

LOGSNRS = np.linspace(-6, 6, 12)


def row(w=0.0, **changed):
    settings = {
        "guidance_weight": w,
        "rule": "cfg()",
        "sampler": "ddim()",
        "num_steps": 8,
        "num_samples": 500,
        "seed": 3,
    }
    more = {"ema": 0.999, "label_policy": "balanced", "scores": "learned", "classifier_scale": None}
    return settings | more | {"network_evaluations": 16 if w else 8, "FID": 2.0, "IS": 3.0} | changed


RECORD = {
    "cfgjax": "0.2",
    "checkpoint": {"step": 4000, "digest": "ab" * 32},
    "features": {"name": "inception", "digest": "cd" * 32},
    "reference": {"origin": "the 50,000 training examples", "digest": "ef" * 32, "count": 50_000},
    "config": {
        "data": {"source": "npz", "image_shape": [32, 32, 3]},
        "diffusion": {"schedule": "cosine", "logsnr_min": -20.0, "logsnr_max": 20.0},
    },
}


def test_the_protocol_names_everything_that_a_result_depends_on():
    found = cards.protocol(RECORD, [row(0.0), row(1.5)])
    expected = {
        "w": "0, 1.5",
        "s = 1 + w": "1, 2.5",
        "rule": "cfg()",
        "sampler": "ddim()",
        "grid": "quantiles of the cosine schedule, λ -20 to 20",
        "clipping": "consistent",
        "T": "8",
        "network evaluations per sample": "8 (w = 0), 16 (w = 1.5)",
        "samples": "500",
        "labels": "balanced",
        "seed": "3",
        "EMA": "0.999",
        "step": "4,000",
        "data": "npz 32×32×3",
        "features": "inception cdcdcdcdcdcd",
        "reference": "the 50,000 training examples efefefefefef",
        "cfgjax": "0.2",
    }
    assert expected.items() <= found.items()
    lines = cards.protocol_lines(found)
    assert all(any(name in line and value in line for line in lines) for name, value in expected.items())
    assert max(map(len, cards.caption(found, 5.0).splitlines())) <= 95


def test_a_result_of_an_older_version_has_a_protocol():
    old = {key: value for key, value in row(1.0).items() if key != "network_evaluations"}
    found = cards.protocol({"checkpoint": {"step": 1}}, [old])
    assert found["network evaluations per sample"] == found["reference"] == "unknown"


def test_files_and_figures_have_the_protocol(tmp_path):
    class Inception:
        points = False
        metric = staticmethod({"FD": "FID", "IS": "IS"}.get)

    write(tmp_path, [row(0.0), row(1.5)], RECORD, Inception)
    written = json.loads((tmp_path / "frontier.json").read_text())
    assert written["protocol"] == cards.protocol(RECORD, [row(0.0), row(1.5)])
    assert "network_evaluations" in (tmp_path / "frontier.csv").read_text().splitlines()[0].split(",")


def test_an_interval_is_stated_in_sigma_logsnr_and_flow_time():
    told = "ς 2 to 0.5, λ -1.386 to 1.386, t 0.6667 to 0.3333"
    assert cards.interval_text(interval(low=0.5, high=2.0)) == told
    assert cards.interval_text(interval(low=-2 * math.log(2), high=2 * math.log(2), unit="logsnr")) == told
    assert cards.interval_text(rescale(interval(low=1 / 3, high=2 / 3, unit="flow"))) == told
    assert cards.interval_text(interval()) == "ς inf to 0, λ -inf to inf, t 1 to 0"
    assert cards.interval_text(interval(low=2, high=5, unit="step")) == "step 2 to 5"
    assert cards.interval_text(cfg()) == ""


def test_with_the_levels_of_a_sampler_an_interval_is_stated_in_every_unit():
    logsnrs = np.arange(-4.0, 4.0)  # of which λ = −2, −1, 0 are guided
    told = "ς 2.718 to 0.6065, λ -2 to 1, t 0.7311 to 0.3775, step 2 to 5, fraction 0.25 to 0.625"
    assert cards.interval_text(interval(low=2, high=5, unit="step"), logsnrs) == told
    assert cards.interval_text(interval(low=-2, high=1, unit="logsnr"), logsnrs) == told
    assert cards.interval_text(interval(low=0.25, high=0.6, unit="fraction"), logsnrs) == told


@dataclasses.dataclass(frozen=True)
class OnlyNoisy:
    """A rule with the null branch at λ < 0."""

    def evaluations(self, logsnrs):
        return 1 + (logsnrs < 0)


class Twice:
    """A sampler that evaluates all levels but the first twice, as Heun's does."""

    def evaluations(self, num_steps):
        return 2 * num_steps - 1

    def evaluated_levels(self, logsnrs):
        return np.concatenate([logsnrs, logsnrs[1:]])


@pytest.mark.parametrize(
    ("rule", "sampler", "w", "number"),
    [
        (cfg(), ddim(), 1.0, 24),
        (cfg(), ddim(), 0.0, 12),  # the null branch is not needed
        (cfg(), ancestral(0.3), -1.0, 24),
        (conditional(), ddim(), 1.0, 12),
        (OnlyNoisy(), ddim(), 1.0, 6 * 2 + 6),
        (OnlyNoisy(), Twice(), 1.0, 6 * 2 + 6 + 5 * 2 + 6),
        (cfg(), Twice(), 1.0, 46),
    ],
)
def test_network_evaluations_are_the_branches_at_every_evaluated_level(rule, sampler, w, number):
    assert network_evaluations(rule, sampler, LOGSNRS, w) == number
