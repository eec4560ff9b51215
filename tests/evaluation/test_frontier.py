import contextlib
import csv
import dataclasses
import itertools
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny import mixture_config

import cfgjax
from cfgjax.base.errors import UsageError
from cfgjax.base.files import read_npz
from cfgjax.base.json_files import HASH
from cfgjax.cli.common import check_diagnostics
from cfgjax.cli.evaluate import evaluate
from cfgjax.cli.main import run_command
from cfgjax.data.sources.registry import open_source
from cfgjax.diffusion.guidance import conditional, evaluations
from cfgjax.diffusion.samplers import ddim
from cfgjax.diffusion.samplers.diagnostics import NoBranches
from cfgjax.evaluation.features.networks import exact
from cfgjax.evaluation.frontier import frontier
from cfgjax.evaluation.frontier.across import rows_with_changes
from cfgjax.evaluation.frontier.diagnose import diagnose
from cfgjax.evaluation.frontier.frontier import Frontier, Stopped, find_reference
from cfgjax.evaluation.frontier.frontier_settings import make_settings
from cfgjax.evaluation.frontier.paired import read_baseline
from cfgjax.evaluation.report import frontier_table as tables
from cfgjax.evaluation.report.differences import difference_figure
from cfgjax.evaluation.report.frontier_files import write
from cfgjax.evaluation.report.frontier_rows import curves
from cfgjax.evaluation.report.gather import gather
from cfgjax.models.binding import rule_value
from cfgjax.models.model import Model
from cfgjax.models.network import init_params
from cfgjax.runs.sample_options import SampleOptions, as_dict, axes
from cfgjax.runs.workdir import Claim
from cfgjax.training.loop import fit
from cfgjax.training.run import Run

OVERRIDES = {
    "diffusion.logsnr_min": -4.0,
    "diffusion.logsnr_max": 8.0,
    "ema.rates": (0.5,),
    "train.num_steps": 20,
    "optimizer.learning_rate": 1e-2,
    "mesh.data": 1,
}
NUM = 90
BATCH_SIZE = 4  # of each device: 32 in all


def trained(workdir):
    """workdir, with a run of twenty steps, saved at the tenth and the last."""
    config = mixture_config(**OVERRIDES)
    run = Run(config, devices=jax.devices()[:1])
    run.config_hooks = []
    with contextlib.closing(Claim(workdir, run.settings)) as claim:
        assert fit(run, claim, SimpleNamespace(signal=None)).done
    return workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("frontier") / "run")


@pytest.fixture(scope="module")
def model(workdir):
    return cfgjax.load(workdir)


@pytest.fixture(scope="module")
def network(model):
    return exact(model.settings.data)


def settings_of(given, model):
    return make_settings(axes(model.defaults.options, model.settings.evaluate.options, given), model)


def frontier_of(
    workdir, folder, model, network, grid, *, batch_size=BATCH_SIZE, kinds=("learned", "exact"), neighbours=True
):
    settings = [s for s in settings_of(grid, model) if s.scores in kinds]
    sizes = {"num_samples": NUM, "batch_size": batch_size}
    measured = {"network": network, "judge": None, "neighbours": neighbours}
    return Frontier(model, settings, workdir=workdir, folder=folder, **sizes, **measured)


def reference_of(model, network, folder):
    dataset = lambda: open_source(model.settings.data)
    return find_reference(None, dataset, network, model.image_shape, folder, lambda images: None)


class Ran:
    """What a frontier did: its rows, how many samples it drew and, with write_files, its files."""

    def __init__(self, workdir, folder, model, network, grid, *, stop_after=None, write_files=False, **options):
        work = frontier_of(workdir, folder, model, network, grid, **options)
        self.rows, self.drawn, asked = [], [], itertools.count(1)

        def check():
            if next(asked) == stop_after:
                raise Stopped

        try:
            reference = reference_of(model, network, folder)
            for row in work.rows(reference, self.drawn.append, check):
                self.rows.append(row)
            self.rows = work.with_changes(self.rows, reference, {})
            if write_files:
                self.files = write(folder, self.rows, work.record(reference), network)
        finally:
            work.close()


GRID = dict(guidance=(0.0, 1.0, 3.0), num_steps=(4,))


@pytest.fixture(scope="module")
def straight(workdir, model, network, tmp_path_factory):
    """The folder and the rows of an evaluation that was left alone."""
    folder = tmp_path_factory.mktemp("straight")
    return folder, Ran(workdir, folder, model, network, GRID, write_files=True).rows


def assert_close(rows, others, rtol=1e-6):
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            if isinstance(value, float | list):
                np.testing.assert_allclose(value, other[name], rtol=rtol, atol=rtol, err_msg=name)
            else:
                assert value == other[name]


def spied(model):
    """A model as the one given, and the batch sizes that its network is traced with."""
    batches = []

    def bind_params(params):
        predict = model.bind(params)
        return lambda z, logsnr, cond: batches.append(len(z)) or predict(z, logsnr, cond)

    return Model(model.settings, model.params, step=model.step, bind_params=bind_params), batches


@pytest.mark.slow
def test_all_weights_but_zero_share_one_program(workdir, model, network, tmp_path):
    spy, batches = spied(model)
    rows = Ran(workdir, tmp_path, spy, network, GRID, kinds=["learned"]).rows
    assert [row["guidance_weight"] for row in rows] == [0, 1, 3]
    assert spy._sample._cache_size() == 2
    assert set(batches) == {32, 64}  # at w = 0 without the null branch


@pytest.mark.slow
def test_without_guidance_the_unconditional_branch_is_neither_compiled_nor_computed(workdir, model, network, tmp_path):
    spy, batches = spied(model)
    rows = Ran(workdir, tmp_path, spy, network, dict(guidance=(0.0,), num_steps=(4,)), kinds=["learned"]).rows
    assert spy._sample._cache_size() == 1
    assert set(batches) == {32}
    guided = Ran(
        workdir, tmp_path / "guided", model, network, dict(guidance=(0.0, 1.0), num_steps=(4,)), kinds=["learned"]
    ).rows
    assert_close(rows, guided[:1], 1e-4)


def test_every_row_has_all_its_columns(straight):
    settings = {"guidance_weight", "scores", "classifier", "weak", *as_dict(SampleOptions())} - {"guidance"}
    distances = {"FD-mixture", "FD_inf-mixture", "KD-mixture", "KD-mixture_std", "MIND-mixture"}
    named = distances | {"IS-mixture", "IS-mixture_10", "IS-mixture_10_std"}
    others = {"entropy", "precision", "recall", "density", "coverage"}
    others |= {"accuracy", "log_posterior", "accuracy_per_class"}
    paired = {"FD-mixture", "IS-mixture", "MIND-mixture", "precision", "recall", "density", "coverage", "accuracy"}
    endings = ("_interval", "_change", "_change_interval")
    others |= {name + ending for name in paired | {"log_posterior"} for ending in endings} | {"baseline", "influences"}
    rows = straight[1]
    assert [(row["scores"], row["guidance_weight"]) for row in rows] == [
        (kind, w) for kind in ("learned", "exact") for w in (0.0, 1.0, 3.0)
    ]
    for row in rows:
        assert row.keys() == settings | {"num_samples", "network_evaluations", "guidance_interval"} | named | others
        assert row["num_samples"] == NUM
        numbers = [value for value in row.values() if isinstance(value, float)]
        assert np.isfinite([*numbers, *row["accuracy_per_class"]]).all()


def test_guidance_trades_entropy_for_certainty_with_exact_scores(straight):
    rows = [row for row in straight[1] if row["scores"] == "exact"]
    assert rows[0]["entropy"] > rows[1]["entropy"]
    assert rows[0]["log_posterior"] < rows[1]["log_posterior"] < 0


def test_the_files_record_the_measurement_and_its_inputs(straight, model, network):
    folder, rows = straight
    found = json.loads((folder / "frontier.json").read_text())
    assert found["rows"] == rows
    assert found["cfgjax"] == cfgjax.__version__
    assert found["features"] == {"name": "mixture", "digest": network.digest}
    assert found["judge"] is None
    assert found["quantisation"] == "none"
    assert found["checkpoint"]["step"] == model.step == 20
    assert len(found["checkpoint"]["digest"]) == len(found["reference"]["digest"]) == 64
    assert found["reference"]["count"] == model.settings.data.options["num_examples"]
    assert found["config"]["diffusion"] == model.settings.given["diffusion"]
    first = found["rows"][0]
    recorded = {"num_samples": NUM, "label_policy": "balanced", "sampler": "ancestral(v=0.3)", "num_steps": 4}
    recorded |= {"guidance_weight": 0, "ema": 0.5, "seed": 0, "rule": "cfg()", "classifier_scale": None}
    assert {name: first[name] for name in recorded} == recorded


def test_the_tables_have_a_row_for_each_setting_and_a_line_for_each_class(straight):
    folder, rows = straight
    lines = list(csv.DictReader((folder / "frontier.csv").read_text().splitlines()))
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert float(line["FD-mixture"]) == row["FD-mixture"]
        assert float(line["scale"]) == 1 + row["guidance_weight"]
        assert line["classifier"] == ""
    head, *classes = csv.reader((folder / "per_class.csv").read_text().splitlines())
    assert [len(head), len(classes)] == [1 + len(rows), 3]
    assert len(set(head)) == len(head)
    assert (folder / "frontier.png").read_bytes()[:4] == b"\x89PNG"


def contents(folder, pattern="frontier.*"):
    return {path.name: path.read_bytes() for path in folder.glob(pattern)}


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in (folder / "samples").rglob("*") if path.is_file()}


def test_a_setting_differs_from_itself_by_exactly_nothing(straight):
    for row in straight[1]:
        changes = {name: value for name, value in row.items() if "_change" in name}
        assert row["baseline"] == "w=0"
        if row["guidance_weight"] == 0:
            assert set(changes.values()) == {0}
        else:
            assert changes["FD-mixture_change_interval"] > 0


def parted(straight, tmp_path):
    """{label: content} of two evaluations, the first without and the second with guidance, as `straight` has in one."""
    folder, rows = straight
    content = json.loads((folder / "frontier.json").read_text())
    content = {key: value for key, value in content.items() if key != HASH}
    alone = [{key: value for key, value in row.items() if "_change" not in key} for row in rows[:3]]
    for name, own in (("first", alone[:1]), ("second", alone[1:])):
        shutil.copytree(folder / "samples", tmp_path / name / "samples")
        (tmp_path / name / "frontier.json").write_text(json.dumps({**content, "rows": own}))
    return {name: gather([tmp_path / name])[0][1] for name in ("first", "second")}


def test_settings_of_two_evaluations_differ_as_those_of_one(straight, tmp_path):
    found = rows_with_changes(parted(straight, tmp_path), read_baseline("run=first", ("run",)))
    assert [row["run"] for row in found] == ["first", "second", "second"]
    for row, expected in zip(found, straight[1][:3], strict=True):
        assert row["baseline"] == "w=0, run=first"
        for name in (name for name in expected if "_change" in name):
            assert row[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-9)  # the file has float32


def test_compare_prints_and_writes_the_differences_of_two_evaluations(straight, tmp_path, capsys):
    parted(straight, tmp_path)
    first, second, table = (str(tmp_path / name) for name in ("first", "second", "table.csv"))
    assert run_command(["compare", first, second, "--baseline=run=first", f"--out={table}"]) == 0
    out = capsys.readouterr().out
    assert "difference from w=0, run=first, ± half of the 95 % interval" in out
    written = list(csv.DictReader(Path(table).read_text().splitlines()))
    assert [row["run"] for row in written] == ["first", "second", "second"]
    assert float(written[0]["FD-mixture_change"]) == 0 < float(written[2]["FD-mixture_change_interval"])


def test_compare_draws_the_differences_with_a_curve_for_each_run(straight, tmp_path):
    found = rows_with_changes(parted(straight, tmp_path), read_baseline("run=first", ("run",)))
    figure = difference_figure(found, {"T": "first: 4; second: 8"})
    names = [text.get_text() for text in figure.legends[0].texts]
    assert len(names) == 2 and "run=first" in names[0] and "run=second" in names[1]
    assert all(container.has_yerr for axis in figure.axes for container in axis.containers)
    runs, plot = (str(tmp_path / name) for name in ("first", "second")), tmp_path / "plot.png"
    assert run_command(["compare", *runs, "--baseline=run=first", f"--plot={plot}"]) == 0
    assert plot.exists() and (tmp_path / "plot_differences.png").read_bytes()[:4] == b"\x89PNG"
    assert run_command(["compare", str(tmp_path / "second"), f"--plot={tmp_path}/alone.png"]) == 0
    assert not (tmp_path / "alone_differences.png").exists()


def test_evaluations_that_cannot_be_paired_are_refused(straight, tmp_path):
    records = parted(straight, tmp_path)
    for path in (tmp_path / "second").glob("samples/*/influences-*"):
        path.unlink()
    changed = lambda **changes: {**records, "second": records["second"] | changes}
    row = records["second"]["rows"][0]
    without = {key: value for key, value in row.items() if key != "influences"}
    for given, told in [
        (records, "influences-"),
        (changed(features={"digest": "x"}), "first and second differ in features"),
        (changed(rows=[row | {"num_samples": 7}]), "first has num_samples 90 and second has 7"),
        (changed(rows=[row | {"seed": 7}]), "no setting has run=first"),
        (changed(rows=[without]), "second, w = 1 was measured without influences"),
    ]:
        with pytest.raises(UsageError, match=told) as raised:
            rows_with_changes(given, {"run": "first"})
        assert "--baseline: " in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["removed", "torn"])
def test_without_the_samples_influences_a_setting_is_measured_again(
    straight, workdir, model, network, tmp_path, damage
):
    folder = shutil.copytree(straight[0], tmp_path / "copy")
    path = sorted(folder.glob("samples/*/influences-*"))[0]
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-40])
    again = Ran(workdir, folder, model, network, GRID)
    assert (again.rows, again.drawn) == (straight[1], [])
    assert path.exists()


def test_known_samples_and_metrics_are_not_computed_again(straight, workdir, model, network):
    folder, rows = straight
    files, times = contents(folder), stamps(folder)
    spy, batches = spied(model)
    again = Ran(workdir, folder, spy, network, GRID)
    assert (again.rows, again.drawn, batches) == (rows, [], [])
    assert contents(folder) == files
    assert stamps(folder) == times


@pytest.mark.parametrize(
    ("stop_after", "drawn", "shards", "measured"),
    [(1, 32, 1, 0), (4, 90, 3, 0), (6, 90 + 64, 5, 1)],  # a setting has three batches, and one block to be measured
)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    straight, workdir, model, network, tmp_path, stop_after, drawn, shards, measured
):
    with pytest.raises(Stopped):
        Ran(workdir, tmp_path, model, network, GRID, stop_after=stop_after)
    assert len(list(tmp_path.glob("samples/*/[0-9]*.npz"))) == shards
    assert len(list(tmp_path.glob("samples/*/metrics-*"))) == measured
    assert not contents(tmp_path)
    again = Ran(workdir, tmp_path, model, network, GRID, write_files=True)
    assert sum(again.drawn) == 6 * NUM - drawn
    assert contents(tmp_path) == contents(straight[0])
    names = lambda folder: sorted(str(path.relative_to(folder)) for path in folder.glob("samples/*/*"))
    assert names(tmp_path) == names(straight[0])


def altered_digit(path):
    """The content of a JSON file with one digit of its metrics changed."""
    text = path.read_text()
    at = next(m.start(1) for m in re.finditer(r"\.(\d)", text))
    return f"{text[:at]}{(int(text[at]) + 1) % 10}{text[at + 1 :]}"


CACHE_DAMAGE = {
    "a changed digit": altered_digit,
    "a changed digit, the hash gone": lambda path: json.dumps({**altered(path), "sha256": None}),
    "an older version's": lambda path: json.dumps(json.loads(path.read_text())["metrics"]),
    "another setting's": lambda path: next(p for p in path.parent.parent.glob("*/metrics-*") if p != path).read_text(),
    "empty": lambda path: "",
    "a list": lambda path: "[]",
    "deep": lambda path: "[" * 100_000,
    "NUL bytes": lambda path: "\0" * 100,
    "torn": lambda path: path.read_text()[:-30],
}


def altered(path):
    return json.loads(altered_digit(path))


@pytest.mark.parametrize("damage", CACHE_DAMAGE)
def test_cached_metrics_that_do_not_match_their_hash_are_measured_again(
    straight, workdir, model, network, tmp_path, caplog, damage
):
    folder = shutil.copytree(straight[0], tmp_path / "copy")
    path = sorted(folder.glob("samples/*/metrics-*"))[0]
    path.write_text(CACHE_DAMAGE[damage](path))
    again = Ran(workdir, folder, model, network, GRID)
    assert (again.rows, again.drawn) == (straight[1], [])
    (record,) = caplog.records
    assert path.name in record.getMessage() and "measured again" in record.getMessage()
    caplog.clear()
    assert Ran(workdir, folder, model, network, GRID).rows == straight[1]
    assert not caplog.records


@pytest.mark.parametrize("kind", ["altered", "no hash", "truncated"])
def test_a_cached_reference_that_does_not_match_its_hash_is_measured_again(model, network, tmp_path, caplog, kind):
    first = reference_of(model, network, tmp_path)
    (path,) = tmp_path.glob("reference-*.npz")
    arrays = read_npz(path)
    if kind == "no hash":
        del arrays["sha256"]
    else:
        arrays["mean"] = arrays["mean"] + 1e-9
    np.savez(path, **arrays)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    assert reference_of(model, network, tmp_path).digest == first.digest
    (record,) = caplog.records
    assert path.name in record.getMessage() and "measured again" in record.getMessage()
    assert reference_of(model, network, tmp_path).digest == first.digest
    assert len(caplog.records) == 1


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 125])
def test_the_result_does_not_depend_on_the_batch_size(straight, workdir, model, network, tmp_path, batch_size):
    ran = Ran(workdir, tmp_path, model, network, GRID, batch_size=batch_size)
    assert_close(ran.rows, straight[1], rtol=5e-6)  # float32 products of other sizes add up in another order


@pytest.mark.slow
def test_the_command_measures_the_same_and_adds_the_closed_form(straight, workdir, tmp_path, capsys):
    flags = ["--guidance=0,1,3", f"--num_samples={NUM}", f"--batch_size={BATCH_SIZE}", "--num_steps=4"]
    assert evaluate(["evaluate", f"--workdir={workdir}", f"--out={tmp_path}", *flags]) == 0
    files = contents(tmp_path, "[!.]*.*")
    for pattern in ("frontier.csv", "per_class.csv"):
        assert contents(tmp_path, pattern) == contents(straight[0], pattern)
    found, own = (json.loads((folder / "frontier.json").read_text()) for folder in (tmp_path, straight[0]))
    assert [point["guidance_weight"] for point in found.pop("tilted")] == [0, 1, 3]
    assert found == own
    told = capsys.readouterr().out
    assert "FD-mixture is smallest at w = " in told
    assert f"wrote frontier.json, frontier.csv, per_class.csv, frontier.png, differences.png in {tmp_path}" in told
    times = stamps(tmp_path)
    assert evaluate(["evaluate", f"--workdir={workdir}", f"--out={tmp_path}", "--nokeep_samples", *flags]) == 0
    assert {path for path in times if not path.name[0].isdigit()} == set(stamps(tmp_path))
    assert evaluate(["evaluate", f"--workdir={workdir}", f"--out={tmp_path}", *flags]) == 0
    assert contents(tmp_path, "[!.]*.*") == files


@pytest.mark.slow
def test_diagnostics_are_written_for_the_rules_that_combine_two_predictions(workdir, tmp_path, capsys):
    flags = ["--guidance=0,1", "--rule=cfg(),conditional()", "--num_samples=40", "--num_steps=4", "--diagnostics"]
    assert evaluate(["evaluate", f"--workdir={workdir}", f"--out={tmp_path}", *flags]) == 0
    assert "diagnostics.json, diagnostics.png" in capsys.readouterr().out
    content = json.loads((tmp_path / "diagnostics.json").read_text())
    assert content["protocol"] == json.loads((tmp_path / "frontier.json").read_text())["protocol"]
    settings = content["settings"]
    assert list(settings) == [f"w={w}, scores={kind}, rule=cfg()" for kind in ("learned", "exact") for w in (0, 1)]
    for name, found in settings.items():
        assert found["num_samples"] == 40 and len(found["logsnr"]) == 4
        tilting = found["tilting"]["mean"]
        assert tilting[0] == 0 and (np.diff(tilting) > 0).all() == ("w=1" in name)
        assert all(-1 <= value <= 1 for value in found["cosine"]["mean"])


def test_diagnostics_need_a_rule_that_has_two_predictions_on_the_network():
    given, rule = SimpleNamespace(diagnostics=True), lambda text: [rule_value(text)]
    with_null, without = (Model(mixture_config(**{"diffusion.p_uncond": p}), {}) for p in (0.1, 0.0))
    check_diagnostics(given, with_null, rule("cfg()"))
    check_diagnostics(given, without, [conditional(), *rule("interval(negative(label=1), low=0.1)")])
    for model, text, absent in ((without, "cfg()", r"cfg\(\)"), (with_null, "conditional()", r"conditional\(\)")):
        told = rf"--diagnostics compares .*use one of the rules (?!.*({absent}|pag)).*negative\(label=0\)"
        with pytest.raises(UsageError, match=told):
            check_diagnostics(given, model, rule(text))
    with pytest.raises(NoBranches, match="combines no two predictions of this network"):
        diagnose(without, SampleOptions(rule="cfg()"), np.zeros(2, int))
    without.put(init_params(without.network, jax.random.key(0), (2,)))
    found = diagnose(without, SampleOptions(rule="negative(label=1)", sampler=ddim(), num_steps=3), np.zeros(2, int))
    assert len(found["cosine"]["mean"]) == 3
    with pytest.raises(UsageError, match="--diagnostics is for one model"):
        run_command(["sample", "--base=a", "--upsampler=b", "--diagnostics"])


def test_without_neighbours_all_other_metrics_are_measured(straight, workdir, model, network, tmp_path):
    ran = Ran(workdir, tmp_path, model, network, GRID, neighbours=False, write_files=True)
    of_all_features = {"precision", "recall", "density", "coverage", "MIND-mixture", "entropy"}
    less = straight[1][0].keys() - ran.rows[0].keys()
    assert {
        name for name in less if not name.endswith(("_interval", "_change", "baseline", "influences"))
    } == of_all_features
    assert "frontier.png" in ran.files


def test_a_folder_in_use_is_refused(workdir, model, network, tmp_path):
    first = frontier_of(workdir, tmp_path, model, network, GRID)
    with pytest.raises(UsageError, match=f"another evaluation is running in {tmp_path}; wait for it"):
        frontier_of(workdir, tmp_path, model, network, GRID)
    first.close()
    frontier_of(workdir, tmp_path, model, network, GRID).close()


def test_samples_that_do_not_fit_on_the_disk_are_refused(workdir, model, network, tmp_path, monkeypatch):
    reference = reference_of(model, network, tmp_path)
    with contextlib.closing(frontier_of(workdir, tmp_path, model, network, GRID)) as work:
        assert work.num_missing(reference) == 6 * NUM
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(UsageError, match=rf"540 samples need 4.32e-06 GB in {tmp_path}, which has 1e-06 GB free"):
            work.num_missing(reference)


@pytest.mark.slow
def test_no_sample_is_missing_if_the_metrics_are_cached(workdir, model, network, tmp_path):
    Ran(workdir, tmp_path, model, network, dict(guidance=(1.0,), num_steps=(2,)))
    reference = reference_of(model, network, tmp_path)
    with contextlib.closing(
        frontier_of(workdir, tmp_path, model, network, dict(guidance=(1.0, 3.0), num_steps=(2,)))
    ) as work:
        work.remove_samples()
        assert work.num_missing(reference) == 2 * NUM
        others = dataclasses.replace(reference, mean=reference.mean + 1)
        assert work.num_missing(others) == 4 * NUM


@pytest.mark.slow
def test_samples_of_different_checkpoints_are_not_mixed(workdir, network, tmp_path):
    grid, rows = dict(guidance=(1.0,), num_steps=(2,)), []
    for step in (10, 20):
        ran = Ran(workdir, tmp_path, cfgjax.load(workdir, step=step), network, grid, kinds=["learned"])
        assert sum(ran.drawn) == NUM
        rows += ran.rows
    assert rows[0]["entropy"] != rows[1]["entropy"]
    assert len(list((tmp_path / "samples").iterdir())) == 2


@pytest.mark.slow
def test_exact_scores_do_not_depend_on_the_checkpoint(workdir, network, tmp_path):
    grid = dict(guidance=(1.0,), num_steps=(2,))
    first, second = (
        Ran(workdir, tmp_path, cfgjax.load(workdir, step=step), network, grid, kinds=["exact"]) for step in (10, 20)
    )
    assert second.drawn == []
    assert second.rows == first.rows


def test_more_samples_of_a_setting_begin_with_the_existing_ones(workdir, model, network, tmp_path, monkeypatch):
    grid = dict(guidance=(1.0,), num_steps=(4,))
    Ran(workdir, tmp_path, model, network, grid, kinds=["learned"])
    monkeypatch.setitem(globals(), "NUM", 120)
    assert sum(Ran(workdir, tmp_path, model, network, grid, kinds=["learned"]).drawn) == 30


@pytest.mark.slow
def test_rows_are_the_product_of_the_requested_values(workdir, model, network, tmp_path):
    grid = dict(guidance=(0.0, 1.0), num_steps=(2, 3), ema=(0.0, 0.5), seed=(0, 1))
    grid |= {"sampler": ("ancestral(v=0)", "ancestral(v=1)")}
    rows = Ran(workdir, tmp_path, model, network, grid, kinds=["learned"]).rows
    keys = ("ema", "num_steps", "sampler", "seed", "guidance_weight")
    assert [tuple(row[key] for key in keys) for row in rows] == list(
        itertools.product((0.0, 0.5), (2, 3), grid["sampler"], (0, 1), (0.0, 1.0))
    )
    assert len({row["FD-mixture"] for row in rows}) == len(rows) == 32
    found = curves(rows)
    assert len(found) == 8
    assert all(len(same) == 2 for by_weight in found.values() for same in by_weight.values())


def test_the_cost_of_each_weight_is_that_of_the_rule_that_draws_its_samples(
    workdir, model, network, tmp_path, monkeypatch
):
    drawn, draw_samples = {}, frontier.draw_samples

    def noting(model, options, *args, **sizes):
        drawn[options.guidance] = options.rule
        return draw_samples(model, options, *args, **sizes)

    monkeypatch.setattr(frontier, "draw_samples", noting)
    grid = dict(guidance=(0.0, 1.0), rule=("cfg()",), sampler=("ddim()",), num_steps=(4,))
    rows = Ran(workdir, tmp_path, model, network, grid, kinds=("learned",)).rows
    assert {row["guidance_weight"]: row["network_evaluations"] for row in rows} == {0.0: 4, 1.0: 8}
    logsnrs = model.grid(4, None)
    assert {w: int(evaluations(rule, logsnrs).sum()) for w, rule in drawn.items()} == {0.0: 4, 1.0: 8}


def test_unknown_ema_rates_are_refused_before_any_work(model):
    with pytest.raises(UsageError, match=r"ema 0.7 is neither a rate of the run \(0.5, 0\)"):
        settings_of(dict(ema=(0.5, 0.7)), model)


@pytest.mark.parametrize(
    ("grid", "told"),
    [
        (dict(guidance=(float("nan"),)), "guidance is nan; need a number that is finite"),
        (dict(guidance=(1.0, 0.0, 1)), "guidance 1, 0, 1: a value occurs twice"),
        (dict(rule=("cfg", "cfg()")), r"rule cfg\(\), cfg\(\): a value occurs twice"),
        (dict(sampler=("ddim(v=0.3)",)), "ddim takes no 'v'; known: eta"),
        (dict(sampler=("ancestral(v=1.5)",)), "v is 1.5"),
        (dict(sampler=("ancestral",)), r"sampler ancestral\(\) needs a network with a learned variance"),
        (dict(rule=("classifier(cfg())",)), r"rule classifier\(\) needs a classifier; give its run with --guide"),
        (dict(rule=("cfg()", "apg(conditional())")), r"apg wraps conditional\(\), which has no weak prediction"),
        (dict(rule=("apg(rescale(cfg(), phi=0.7))",)), "rescale has no effect inside apg"),
        (dict(num_steps=(1,)), "num_steps is 1; need an integer of at least 2"),
        (dict(num_steps=(4, 10**9)), "num_steps is 1000000000; need an integer of at least 2 and at most 1000000"),
        (dict(seed=(-1,)), "seed is -1"),
        (dict(label_policy=("sorted",)), "label_policy is 'sorted'; need 'balanced' or 'random'"),
    ],
)
def test_grids_that_cannot_be_drawn_are_refused_before_any_work(model, grid, told):
    with pytest.raises(UsageError, match=told):
        settings_of(grid, model)


def row(w, seed=0, distance=1.0, **others):
    """A row of a frontier of images."""
    setting = {"sampler": "ancestral(v=0.3)", "rule": "cfg()", "ema": 0.5, "seed": seed, "label_policy": "balanced"}
    metrics = {"FD-mixture": distance, "IS-mixture": 2.0 + seed, "KD-mixture_std": 0.1}
    fixed = {"guidance_weight": w, "num_steps": 4, "scores": "learned", "num_samples": 9}
    return {**fixed, **setting, **metrics, **others}


def test_a_table_has_mean_and_deviation_over_the_seeds():
    rows = [row(w, seed, w + seed) for w in (0.0, 1.0) for seed in (0, 2)]
    head, *lines = tables.frontier_table(rows)
    assert head.split() == ["w", "s", "FD-mixture", "IS-mixture"]
    assert lines[0].split() == ["0", "1", "1", "±", "1.4", "3", "±", "1.4"]
    assert lines[1].split()[2:5] == ["2", "±", "1.4"]
    assert "±" not in "".join(tables.frontier_table(rows[::2]))


def test_a_table_has_a_part_for_each_curve():
    lines = tables.frontier_table([row(w, num_steps=T) for T in (4, 8) for w in (0.0, 1.0)])
    assert [line for line in lines if line.endswith(":")] == ["num_steps=4:", "num_steps=8:"]
    assert len(lines) == 7


@pytest.mark.parametrize(
    ("distances", "told"),
    [
        ((3, 1, 2), "FD-mixture is smallest at w = 1, 1"),
        ((1, 2, 3), "FD-mixture is smallest at w = 0, 1, the first of the list: a smaller one may be even better"),
        ((3, 2, 1), "FD-mixture is smallest at w = 2, 1, the last of the list: a larger one may be even better"),
        ((1,), "FD-mixture is smallest at w = 0, 1"),
    ],
)
def test_a_minimum_at_an_end_of_the_list_is_reported(network, distances, told):
    rows = [row(float(w), distance=d) for w, d in enumerate(distances)]
    assert tables.findings(rows, network) == [told]
    assert tables.findings(rows[::-1], network) == [told]
