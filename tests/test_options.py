"""The options of sampling: one field reaches flags, configs, frontiers, tables and identities."""

import dataclasses
import json
from dataclasses import dataclass, field

import numpy as np
import pytest
from tiny import EXPERIMENTS, digits_config, mixture_config, of_mixture, settings

from cfgjax.base.errors import UsageError
from cfgjax.base.numerals import real_number
from cfgjax.base.python_files import load_module
from cfgjax.cli.launch import check_command
from cfgjax.cli.main import run_command as cfgjax_command
from cfgjax.data.sources.registry import mixture_of
from cfgjax.diffusion.grids import flow
from cfgjax.diffusion.guidance import cfg, classifier, conditional
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.samplers import ancestral, ddim
from cfgjax.diffusion.specs import Spec
from cfgjax.evaluation.frontier.frontier_settings import Setting, make_settings
from cfgjax.evaluation.report.frontier_files import frontier_csv
from cfgjax.evaluation.report.frontier_rows import curves
from cfgjax.models.binding import classifier_scale, with_guide
from cfgjax.models.model import Model
from cfgjax.runs import sample_options
from cfgjax.runs.sample_options import SampleOptions, axes, combinations, read_values, split
from cfgjax.runs.values import NUMBER
from cfgjax.runs.workdir import read_settings


@dataclass(frozen=True)
class MoreOptions(SampleOptions):
    """The options with a new one."""

    shift: float = field(
        default=0.0, metadata=sample_options.option(NUMBER, real_number, "A new option.", noun="numbers")
    )


@pytest.fixture
def shift(monkeypatch):
    monkeypatch.setattr(sample_options, "SampleOptions", MoreOptions)


def exact_model(config=None):
    config = config or mixture_config()
    return Model(config, {}, bind_params=of_mixture(mixture_of(settings(config).data)))


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_a_new_option_is_a_flag(command, shift, capsys):
    assert cfgjax_command([command, "--help"]) == 0
    assert "--shift: A new option." in capsys.readouterr().out


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_launch_and_sweep_accept_a_new_option(command, shift):
    given = check_command([command, "--workdir=run", "--shift=0,1.5"])
    assert read_values("shift", given.shift) == (0.0, 1.5)


def shifts(config):
    return axes(config.sample.to_dict(), config.evaluate.to_dict())["shift"]


def test_a_new_option_is_a_key_of_both_config_sections(shift):
    config = load_module(EXPERIMENTS / "base.py", "config file").get_config()
    assert (config.sample.shift, config.evaluate.shift) == (0.0, None)
    assert "shift" in sample_options.kinds("sample") and "shift" in sample_options.kinds("evaluate")
    config.sample.shift = 2.0
    assert shifts(config) == axes(config.sample.to_dict())["shift"] == (2.0,)
    config.evaluate.shift = 3.0
    assert shifts(config) == (3.0,)


def test_a_new_option_is_an_axis_and_a_column_and_its_default_changes_no_identity(shift):
    model = exact_model()
    given = {"guidance": (0.0, 1.0), "shift": (0.0, 1.5)}
    settings = [s for s in make_settings(axes(model.defaults.options, given=given), model) if s.scores == "exact"]
    assert [(s.options.shift, s.options.guidance) for s in settings] == [(0, 0), (0, 1), (1.5, 0), (1.5, 1)]
    assert [s.identity.get("shift") for s in settings] == [None, None, 1.5, 1.5]
    rows = [{**s.row, "num_samples": 9, "FD-mixture": 1.0, "IS-mixture": 1.0} for s in settings]
    assert list(curves(rows)) == ["shift=0", "shift=1.5"]
    assert "shift" in frontier_csv(rows).splitlines()[0].split(",")


def test_a_new_option_is_an_argument_of_a_models_sampler(shift):
    model = exact_model()
    assert model.options.shift == 0.0
    points = model.sample([0, 1], shift=1.5, num_steps=2)
    assert points.shape == (2, 2)
    with pytest.raises(UsageError, match="shift is 'a'; need a number"):
        model.sample([0, 1], shift="a")


def test_an_unknown_option_is_named_with_the_nearest_one():
    with pytest.raises(UsageError, match="unknown option 'smapler', did you mean 'sampler'"):
        exact_model().sample([0], smapler="ddim")


@pytest.mark.parametrize(
    ("rule", "sampler", "guide", "stored"),
    [
        (cfg(), ancestral(v=0.3), None, {"sampler": "ancestral", "v": 0.3, "eta": None, "classifier_form": None}),
        (cfg(), ancestral(), None, {"sampler": "ancestral", "v": None, "eta": None, "classifier_form": None}),
        (cfg(), ddim(eta=0.5), None, {"sampler": "ddim", "v": None, "eta": 0.5, "classifier_form": None}),
        (
            classifier(cfg(), form="mean"),
            ancestral(v=0.3),
            "8c8b",
            {"sampler": "ancestral", "v": 0.3, "eta": None, "classifier_form": "mean"},
        ),
    ],
)
def test_identities_of_stored_samples_do_not_change(rule, sampler, guide, stored):
    scale = None if guide is None else 2.0
    chosen = SampleOptions(1.5, scale, 7, "random", rule, sampler, 64, 0.5)
    assert Setting(chosen, "learned", guide).identity == stored | {
        "guidance_weight": 1.5,
        "num_steps": 64,
        "ema": 0.5,
        "seed": 7,
        "label_policy": "random",
        "scores": "learned",
        "classifier": guide,
        "classifier_scale": scale or 0.0,
    }


@dataclass(frozen=True, repr=False)
class later(Spec):
    """A sampler that is none of the first."""

    order: int = 2


@pytest.mark.parametrize("change", [{"rule": conditional()}, {"sampler": later()}, {"sampler": later(order=3)}])
def test_different_rules_and_samplers_have_different_identities(change):
    first = SampleOptions(rule=cfg(), sampler=ancestral(v=0.3))
    identities = [Setting(first).identity, Setting(dataclasses.replace(first, **change)).identity]
    assert identities[0] != identities[1]
    ((name, value),) = change.items()
    assert identities[1][name] == repr(value)
    assert json.loads(json.dumps(identities[1])) == identities[1]


def test_later_options_vary_more_slowly_and_equal_ones_are_refused():
    found = [
        (o.guidance, o.seed, o.num_steps) for o in combinations({"guidance": (0, 1), "num_steps": (4, 8), "seed": (5,)})
    ]
    assert found == [(0, 5, 4), (1, 5, 4), (0, 5, 8), (1, 5, 8)]
    with pytest.raises(UsageError, match=r"guidance 0, 0: a value occurs twice"):
        list(combinations({"guidance": (0, 0.0)}))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("cfg(),conditional", ["cfg()", "conditional"]),
        ("classifier(cfg(), scale=2, form='a,b'), cfg", ["classifier(cfg(), scale=2, form='a,b')", "cfg"]),
        ("0, 1.5 ,2", ["0", "1.5", "2"]),
        ("f(x=(1, 2)), g([1, 2])", ["f(x=(1, 2))", "g([1, 2])"]),
        ("1,,2", ["1", "", "2"]),
        ("f(", ["f("]),
        (" ", []),
    ],
)
def test_commas_in_parentheses_and_quotes_do_not_separate_values(text, parts):
    assert split(text) == parts


@pytest.mark.parametrize(
    ("sample", "sampler"),
    [
        ({"sampler": "ancestral", "v": 0.25, "eta": 0.0}, "ancestral(v=0.25)"),
        ({"sampler": "ancestral", "v": None, "eta": 0.0}, "ancestral()"),
        ({"sampler": "ddim", "v": 0.3, "eta": 0.5}, "ddim(eta=0.5)"),
        ({"sampler": "ddim(eta=0.5)"}, "ddim(eta=0.5)"),
    ],
)
def test_a_run_of_an_older_version_is_loaded_with_its_sampler(sample, sampler, tmp_path):
    values = mixture_config().to_dict()
    values["sample"] = {**values["sample"], **sample}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_settings(tmp_path).sample.options["sampler"] == sampler


def test_a_guide_is_bound_to_every_classifier_of_a_rule_or_wraps_a_rule_without_one():
    assert with_guide(cfg(), "guide") == classifier(cfg(), guide="guide")
    nested = classifier(classifier(cfg(), scale=3.0), scale=2.0)
    assert with_guide(nested, "guide") == classifier(classifier(cfg(), 3.0, guide="guide"), 2.0, guide="guide")
    assert classifier_scale(with_guide(nested, "guide", 5.0)) == 5.0
    assert with_guide(cfg(), None) == cfg()


def test_evaluate_takes_missing_options_from_sample():
    sample, evaluate = {"guidance": (0.0,), "num_steps": 9, "sampler": "ddim"}, {"seed": 4, "num_steps": None}
    found = axes(sample, evaluate, {"guidance": (1.0, 2.0)})
    assert (found["num_steps"], found["sampler"], found["seed"], found["rule"]) == ((9,), ("ddim",), (4,), ("cfg()",))
    assert found["guidance"] == (1.0, 2.0)


@pytest.mark.parametrize("weights", [(0.0,), (0.0, 1.0)])
def test_a_rule_as_text_draws_the_same_samples_as_its_value(weights):
    model = exact_model()
    for w in weights:
        texts = model.sample([0, 1, 2], w, rule="cfg()", sampler="ddim(eta=1)", num_steps=4)
        values = model.sample([0, 1, 2], w, rule=cfg(), sampler=ddim(eta=1.0), num_steps=4)
        assert np.array_equal(texts, values)


def test_grid_and_clip_are_in_the_identity_only_if_they_are_not_the_default():
    model = exact_model()
    given = {"grid": ("schedule", "edm(rho=7.0)", flow(shift=2)), "clip": ("consistent", "none"), "guidance": (0.0,)}
    found = [s for s in make_settings(axes(model.defaults.options, given=given), model) if s.scores == "exact"]
    assert [(s.identity.get("grid"), s.identity.get("clip")) for s in found] == [
        (grid, clip) for clip in (None, "none") for grid in (None, "edm()", "flow(shift=2)")
    ]
    assert [s.row["grid"] for s in found[:3]] == ["schedule()", "edm()", "flow(shift=2)"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"grid": "edn()"}, "unknown grid 'edn', did you mean 'edm'"),
        ({"clip": "static"}, "clip is 'static'; need 'consistent' or 'x_only' or 'none'"),
    ],
)
def test_a_wrong_grid_or_clip_is_reported_before_anything_is_drawn(given, message):
    with pytest.raises(UsageError, match=message):
        exact_model().sample([0], **given)


def test_images_are_clipped_as_chosen_and_other_data_never():
    config = digits_config()
    far = lambda params: lambda z, logsnr, cond: Prediction(3 * z, 0.5 * z)
    images = Model(config, {}, bind_params=far)
    draw = lambda clip: images.sample_float([0, 1], sampler="ddim()", num_steps=3, clip=clip)
    consistent, x_only, unbounded = map(draw, ("consistent", "x_only", "none"))
    assert np.abs(consistent).max() <= 1 and np.abs(x_only).max() <= 1 < np.abs(unbounded).max()
    points = Model(mixture_config(), {}, bind_params=far)
    drawn = [points.sample([0, 1], sampler="ddim()", num_steps=3, clip=clip) for clip in ("consistent", "none")]
    np.testing.assert_array_equal(*drawn)
    assert np.abs(drawn[0]).max() > 1


@pytest.mark.parametrize("sampler", ["heun(s_churn=2)", "dpmpp_2m()", "dpmpp_2m_sde()", "unipc()"])
def test_samplers_are_options_of_a_model_and_have_a_trajectory(sampler):
    x, seen = exact_model().sample([0, 1, 2], 1.0, sampler=sampler, grid="edm()", num_steps=5, return_trajectory=True)
    assert seen.z.shape == seen.x.shape == (5, 3, 2) and np.isfinite(seen.z).all()
    np.testing.assert_array_equal(seen.x[-1], x)
