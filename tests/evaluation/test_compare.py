"""Runs side by side, and beside published rows: a difference is shown only where no setting is known to differ."""

import copy
import csv
import json
import shlex

import pytest
from PIL import Image

from cfgjax.base.errors import UsageError
from cfgjax.base.json_files import content_hash
from cfgjax.cli import main as cli
from cfgjax.evaluation.report import targets
from cfgjax.evaluation.report.comparison import compared_run
from cfgjax.evaluation.report.comparison_figure import comparison_figure
from cfgjax.evaluation.report.cost_figure import cost_figure
from cfgjax.evaluation.report.gather import gather
from cfgjax.evaluation.report.protocol import merged_protocol

INCEPTION = "6726825d" + 56 * "0" + "-tf1"
REFERENCE = {"digest": "da6227e3932398c4", "count": 1_281_167, "origin": "the 1,281,167 training examples"}
COMMON = {"num_steps": 256, "rule": "cfg()", "sampler": "ancestral(v=0.3)", "ema": 0.9999, "seed": 0}
COMMON |= {"label_policy": "balanced", "scores": "learned", "num_samples": 50_000}
SCORES = {0.0: (2.0, 50.0), 0.1: (1.5, 70.0)}  # w: (FID, IS)


def record(network="inception", scores=SCORES, **changed):
    """A frontier.json of the setting of cfg_imagenet64 with some of its values changed."""
    data = {"source": "npz", "image_shape": [64, 64, 3], "num_classes": 1000}
    config = {"data": data, "model": {}, "diffusion": {"p_uncond": changed.pop("p_uncond", 0.1)}}
    data |= {key: changed.pop(key) for key in list(changed) if key in data}
    names = ("FID", "IS") if network == "inception" else (f"FD-{network}", f"IS-{network}")
    reference = REFERENCE | changed.pop("reference", {})
    features = {"name": network, "digest": changed.pop("features", INCEPTION)}
    judge = {"name": "classifier", "digest": changed.pop("judge")} if "judge" in changed else None
    rows = [{"guidance_weight": w, **COMMON, **changed, **dict(zip(names, pair, strict=True)), "IS_10": 1.0}
            for w, pair in scores.items()]  # fmt: skip
    known = {"features": features, "judge": judge, "reference": reference, "config": config, "rows": rows}
    return {"checkpoint": {"step": 400_000, "digest": "8c8b"}, **known}


def write(folder, content):
    """The workdir of a run of which nothing is left but its frontier."""
    (folder / "evaluation").mkdir(parents=True)
    (folder / "evaluation" / "frontier.json").write_text(json.dumps(content))
    return folder


def table_of(out):
    """[labels of the groups, names of the columns, cells of each w …] of a printed table."""
    lines = [[part.split() for part in line.split("|")] for line in out.splitlines() if "|" in line]
    return [[" ".join(part) for part in lines[0]], *lines[1:]]


def compare(*words):
    return cli.run_command(["compare", *map(str, words)])


def published(**changed):
    """Targets like cfg_imagenet64, of which everything is stated."""
    content = copy.deepcopy(targets.load_targets("cfg_imagenet64"))
    content["setting"] |= {"label_policy": "balanced", "data": "npz", "reference": REFERENCE["origin"], **changed}
    return content


@pytest.mark.parametrize(
    ("name", "count", "row"),
    [
        ("cfg_imagenet64", 42, {"w": 0.1, "p_uncond": 0.1, "fid": 1.55, "inception_score": 66.11}),
        ("cfg_imagenet64", 42, {"w": 0.0, "p_uncond": 0.5, "fid": 2.21, "inception_score": 47.61}),
        ("cfg_imagenet64", 42, {"w": 4.0, "p_uncond": 0.2, "fid": 23.84, "inception_score": 248.97}),
        ("cfg_imagenet128", 42, {"w": 0.3, "num_steps": 256, "fid": 2.43, "inception_score": 158.47}),
        ("cfg_imagenet128", 42, {"w": 4.0, "num_steps": 128, "fid": 21.55, "inception_score": 422.29}),
        ("adm_imagenet256", 6, {"w": 0.0, "fid": 10.94, "sfid": 6.02, "inception_score": 100.98, "recall": 0.63}),
        ("adm_imagenet256", 6, {"classifier_scale": 10.0, "conditional": False, "fid": 12.0, "precision": 0.76}),
    ],
)
def test_targets_equal_the_numbers_of_the_papers(name, count, row):
    content = targets.load_targets(name)
    assert content["name"] == name
    assert len(content["rows"]) == count
    assert any(row.items() <= found.items() for found in content["rows"])


def test_every_weight_has_a_published_row_for_every_setting():
    for name, key in [("cfg_imagenet64", "p_uncond"), ("cfg_imagenet128", "num_steps")]:
        rows = targets.load_targets(name)["rows"]
        pairs = {(row["w"], row[key]) for row in rows}
        assert len(pairs) == len(rows) == len({w for w, _ in pairs}) * len({value for _, value in pairs}) == 14 * 3


def test_only_the_unguided_conditional_row_of_classifier_guidance_has_a_weight():
    (row,) = [row for row in targets.load_targets("adm_imagenet256")["rows"] if "w" in row]
    assert row["w"] == 0
    assert row["conditional"] and not row["classifier_guidance"]


def test_recalled_settings_are_named_and_nothing_else_is_cited():
    for name in targets.published_targets():
        content = targets.load_targets(name)
        assert {"sampler", "v"} <= set(content["recalled"]) <= set(targets.SETTINGS)
        assert "arXiv:" in content["source"] and ".txt" not in content["source"]


def test_differences_from_published_results_are_shown_if_the_settings_agree(tmp_path, capsys):
    assert compare(write(tmp_path / "a", record()), "--targets=cfg_imagenet64") == 0
    out = capsys.readouterr().out
    labels, names, *rows = table_of(out)
    beside = "cfg_imagenet64, p_uncond=0.1"
    assert labels == ["", "a", beside, f"a − {beside}"]
    assert names == [["w", "s"], ["FID", "IS"], ["FID", "IS"], ["FID", "IS"]]
    assert rows == [
        [["0", "1"], ["2", "50"], ["1.8", "53.71"], ["+0.2", "-3.71"]],
        [["0.1", "1.1"], ["1.5", "70"], ["1.55", "66.11"], ["-0.05", "+3.89"]],
    ]
    assert "a: not comparable" not in out
    for told in (
        "label_policy: balanced, published not stated",
        "data: npz, published ImageNet (not checked)",
        "recalled, not checked against the paper's text: sampler, num_steps, v",
    ):
        assert told in out


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"num_samples": 2000}, "num_samples is 2,000, published 50,000"),
        ({"label_policy": "random"}, "label_policy is random, published balanced"),
        ({"sampler": "ddim()"}, "sampler is ddim, published ancestral"),
        ({"sampler": "ancestral()"}, "v is learned, published 0.3"),
        ({"num_steps": 64}, "num_steps is 64, published 256"),
        ({"sampler": "ancestral(v=0.2)"}, "v is 0.2, published 0.3"),
        ({"network": "classifier", "features": "a89337f91bcac558"}, "features are classifier, published inception"),
        ({"features": "0123456789-tf1"}, "features are inception 01234567-tf1, published inception"),
        (
            {"features": INCEPTION.replace("tf1", "half_pixel")},
            "features are inception 6726825d-half_pixel, published inception",
        ),
        ({"image_shape": [32, 32, 3]}, "image_shape is 32×32×3, published 64×64×3"),
        ({"num_classes": 10}, "num_classes is 10, published 1,000"),
        ({"source": "digits"}, "data is digits, published npz"),
        ({"p_uncond": 0.3}, "p_uncond is 0.3, published 0.1 or 0.2 or 0.5"),
    ],
)
def test_a_single_differing_setting_is_named_and_no_difference_is_computed(tmp_path, capsys, changed, told):
    (tmp_path / "stated.json").write_text(json.dumps(published()))
    runs = [write(tmp_path / "same", record()), write(tmp_path / "other", record(**changed))]
    assert compare(*runs, f"--targets={tmp_path / 'stated.json'}") == 0
    out = capsys.readouterr().out
    assert f"other: not comparable with cfg_imagenet64: {told}\n" in out
    assert "same: not comparable" not in out
    labels = table_of(out)[0]
    assert "same − cfg_imagenet64, p_uncond=0.1" in labels
    assert not any(label.startswith("other −") for label in labels)


def test_every_difference_is_named(tmp_path, capsys):
    run = write(tmp_path / "a", record("classifier", num_samples=500, num_classes=10))
    compare(run, "--targets=cfg_imagenet64")
    told = "num_samples is 500, published 50,000; features are classifier, published inception; num_classes is 10"
    assert f"a: not comparable with cfg_imagenet64: {told}, published 1,000\n" in capsys.readouterr().out


def test_distances_of_other_features_are_not_called_fid(tmp_path, capsys):
    compare(write(tmp_path / "a", record("classifier", features="a893")), "--targets=cfg_imagenet64")
    labels, names, *rows = table_of(capsys.readouterr().out)
    assert labels == ["", "a", "cfg_imagenet64, p_uncond=0.1"]
    assert names[1] == ["FD-classifier", "IS-classifier"]
    assert rows[0][1:] == [["2", "50"], ["1.8", "53.71"]]


def test_rows_are_matched_by_steps_and_equal_weights_only(tmp_path, capsys):
    content = record(
        scores={0.3: (2.5, 150.0), 0.35: (2.6, 160.0)}, sampler="ancestral(v=0.2)", image_shape=[128, 128, 3]
    )
    content["rows"] += [{**row, "num_steps": 1024} for row in content["rows"]]
    compare(write(tmp_path / "a", content), "--targets=cfg_imagenet128")
    labels, _, first, second = table_of(capsys.readouterr().out)
    assert labels[1:4] == ["a: num_steps=256"] + [f"{a}cfg_imagenet128, num_steps=256" for a in ("", labels[1] + " − ")]
    assert first[2:4] == [["2.43", "158.47"], ["+0.07", "-8.47"]]
    assert first[5:7] == [["2.43", "156"], ["+0.07", "-6"]]
    assert second[2:4] == second[5:7] == [["-", "-"], ["-", "-"]]


def test_weights_and_scales_give_the_same_samples(tmp_path, capsys):
    compare(write(tmp_path / "a", record(scores={1.1 - 1: (1.5, 70.0)})), "--targets=cfg_imagenet64")
    assert table_of(capsys.readouterr().out)[2][3] == ["-0.05", "+3.89"]


def test_a_run_without_matching_published_rows_is_reported(tmp_path, capsys):
    compare(write(tmp_path / "a", record(scores={0.15: (1.5, 70.0)})), "--targets=cfg_imagenet64")
    out = capsys.readouterr().out
    assert table_of(out)[0] == ["", "a"]
    assert "a: no row of cfg_imagenet64 has one of its weights w with its setting" in out


def test_classifier_guidance_is_listed_and_not_subtracted(tmp_path, capsys):
    run = write(tmp_path / "a", record(image_shape=[256, 256, 3], num_steps=250))
    compare(run, "--targets=adm_imagenet256")
    out = capsys.readouterr().out
    labels, names, first, second = table_of(out)
    assert labels[2:] == ["adm_imagenet256, conditional=True"]
    assert names[2] == ["FID", "sFID", "IS", "precision", "recall"]
    assert first[2][0] == "10.94" and set(second[2]) == {"-"}
    assert "a: not comparable with adm_imagenet256: v is 0.3, published learned\n" in out
    assert out.count("adm_imagenet256: also lists conditional=") == 5


def test_seeds_are_averaged_and_absent_weights_are_dashes(tmp_path, capsys):
    several = record()
    several["rows"] += [{**row, "seed": 1, "FID": row["FID"] + 2} for row in several["rows"]]
    runs = [write(tmp_path / "a", several), write(tmp_path / "b", record(scores={4.0: (9.0, 99.0)}))]
    compare(*runs, "--targets=cfg_imagenet64")
    _, _, *rows = table_of(capsys.readouterr().out)
    assert rows[0] == [
        ["0", "1"],
        ["3", "±", "1.4", "50", "±", "0"],
        ["1.8", "53.71"],
        ["+1.2", "±", "1.4", "-3.71", "±", "0"],
        ["-", "-"],
        ["-", "-"],
    ]
    assert rows[2][1] == ["-", "-"] and rows[2][4] == ["9", "99"]


def test_the_runs_are_listed_with_their_settings(tmp_path, capsys):
    compare(write(tmp_path / "a", record(sampler="ddim(eta=0.5)")))
    head, line, *_ = capsys.readouterr().out.splitlines()
    assert " ".join(head.split()) == "run step N labels rule sampler T EMA p_uncond features guide reference"
    told = "a 400000 50,000 balanced cfg() ddim(eta=0.5) 256 0.9999 0.1 inception 6726825d-tf1 none da6227e3,"
    assert " ".join(line.split()) == f"{told} the 1,281,167 training examples"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"num_samples": 500}, "num_samples (50,000; 500)"),
        ({"label_policy": "random"}, "label_policy (balanced; random)"),
        ({"features": "0123456789-tf1"}, "features (inception 6726825d-tf1; inception 01234567-tf1)"),
        ({"reference": {"digest": "abcdefabcdef"}}, "reference (da6227e3; abcdefab)"),
    ],
)
def test_differences_that_make_runs_incomparable_are_reported(tmp_path, capsys, changed, told):
    compare(write(tmp_path / "a", record()), write(tmp_path / "b", record(**changed)))
    out = capsys.readouterr().out
    assert f"a and b differ in {told}: their columns are not comparable\n" in out
    assert out.count("differ in") == 1


@pytest.mark.parametrize(
    ("judges", "told"),
    [
        (("a89337f91bcac558", "a89337f91bcac558"), None),
        (("a89337f91bcac558", "0123456789abcdef"), "judge (a89337f9; 01234567)"),
        ((None, "0123456789abcdef"), "judge (none; 01234567)"),
    ],
)
def test_runs_judged_by_different_classifiers_are_reported(tmp_path, capsys, judges, told):
    runs = [record(**({"judge": digest} if digest else {})) for digest in judges]
    compare(*(write(tmp_path / name, run) for name, run in zip("ab", runs, strict=True)))
    out = capsys.readouterr().out
    assert out.count("differ in") == (told is not None)
    assert told is None or f"a and b differ in {told}: their columns are not comparable\n" in out


def test_labels_of_runs_are_as_short_as_possible_and_unique(tmp_path, capsys):
    for name in ("x/a", "y/a", "y/b"):
        write(tmp_path / name, record())
    files = [tmp_path / "x/a", tmp_path / "y/a/evaluation", tmp_path / "y/b/evaluation/frontier.json", tmp_path / "y/b"]
    compare(*files)
    assert table_of(capsys.readouterr().out)[0] == ["", "x/a", "y/a", "b (1)", "b (2)"]


def test_the_folder_of_a_sweep_stands_for_its_runs_in_numeric_order(tmp_path, capsys):
    for name in ("w=10", "w=2", "w=0.5"):
        write(tmp_path / "sweep" / name, record(p_uncond=float(name[2:]) / 100))
    (tmp_path / "sweep" / "unfinished").mkdir()
    (tmp_path / "sweep" / "w=2.json").write_text("{}")
    compare(tmp_path / "sweep")
    assert table_of(capsys.readouterr().out)[0] == ["", "w=0.5", "w=2", "w=10"]


def test_parts_of_one_networks_frontier_are_one_curve(tmp_path, capsys):
    for w, pair in SCORES.items():
        part = tmp_path / "parts" / f"guidance={w}" / "frontier.json"
        part.parent.mkdir(parents=True)
        part.write_text(json.dumps(record(scores={w: pair})))
    write(tmp_path / "whole", record())
    compare(tmp_path / "parts", tmp_path / "whole")
    head, _, *rows = table_of(capsys.readouterr().out)
    assert head == ["", "parts", "whole"]
    assert all(row[1] == row[2] for row in rows) and len(rows) == len(SCORES)


def test_the_plot_has_every_curve_and_published_rows_where_they_belong(tmp_path, capsys):
    for p_uncond in (0.1, 0.2):
        write(tmp_path / "a" / f"p={p_uncond}", record(p_uncond=p_uncond))
    write(tmp_path / "b", record(network="classifier"))
    content = {name: [record_of(file) for file in (tmp_path / name).rglob("frontier.json")] for name in "ab"}
    runs = {name: [compared_run(str(i), one) for i, one in enumerate(records)] for name, records in content.items()}
    drawn = comparison_figure(runs["a"], targets.load_targets("cfg_imagenet64"))
    (axis,) = drawn.axes
    labels = axis.get_legend_handles_labels()[1]
    assert labels == ["0", "1", *(f"cfg_imagenet64, p_uncond={p}" for p in (0.1, 0.2, 0.5))]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("FID", "IS")
    assert {text.get_text() for text in axis.texts} == {"0", "0.1"}
    (axis,) = comparison_figure(runs["b"], targets.load_targets("cfg_imagenet64")).axes
    assert axis.get_xlabel() == "FD-classifier" and axis.get_legend_handles_labels()[1] == ["0"]
    assert compare(tmp_path / "a", f"--plot={tmp_path / 'out.png'}") == 0
    with Image.open(tmp_path / "out.png") as picture:
        assert min(picture.size) > 400


def record_of(file):
    return json.loads(file.read_text())


def test_the_joined_table_is_written(tmp_path, capsys):
    run = write(tmp_path / "a", record())
    for ending in ("csv", "json"):
        assert compare(run, "--targets=cfg_imagenet64", f"--out={tmp_path / 'out'}.{ending}") == 0
        assert f"wrote {tmp_path / 'out'}.{ending}" in capsys.readouterr().out
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["targets"] == "cfg_imagenet64" and content["runs"][0]["run"] == "a"
    assert any("not stated" in note for note in content["notes"])
    assert content["rows"][1]["a − cfg_imagenet64, p_uncond=0.1 FID"] == pytest.approx(-0.05)
    with open(tmp_path / "out.csv") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert rows == content["rows"]


@pytest.mark.parametrize("name", ["sweep", "a sweep"])
def test_the_suggested_evaluation_names_a_run_of_the_sweep(name, tmp_path):
    for run in ("10", "9"):
        (tmp_path / name / run).mkdir(parents=True)
        (tmp_path / name / run / "config.json").touch()
    with pytest.raises(UsageError, match="none of the 2 runs") as raised:
        compare(tmp_path / name)
    advice = shlex.split(str(raised.value).rpartition(": ")[2])
    assert advice == ["cfgjax", "evaluate", f"--workdir={tmp_path / name / '9'}"]


def test_compare_advises_to_repeat_a_sweep_with_unfinished_evaluations(tmp_path):
    (tmp_path / "w=0.5").mkdir()
    (tmp_path / "w=0.5.log").touch()
    with pytest.raises(UsageError, match="no evaluation in .* is complete.*cfgjax sweep"):
        compare(tmp_path)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "give at least one RUN"),
        (
            "{tmp}/empty",
            "{tmp}/empty has no frontier.json; if it is a run, evaluate it first: cfgjax evaluate --workdir={tmp}/e",
        ),
        ("{tmp}/none", "{tmp}/none does not exist"),
        ("{tmp}/broken.json", "{tmp}/broken.json is damaged"),
        ("{tmp}/list.json", "{tmp}/list.json is damaged"),
        ("{tmp}/rows.json", "{tmp}/rows.json is not what cfgjax evaluate writes"),
        ("{tmp}/a --targets=cfg_imagenet63", "unknown targets 'cfg_imagenet63', did you mean 'cfg_imagenet64'?"),
        ("{tmp}/a --targets={tmp}/none.json", "cannot read {tmp}/none.json"),
        ("{tmp}/a --targets={tmp}/list.json", "{tmp}/list.json is damaged"),
        ("{tmp}/a --target=x", "Unknown command line flag 'target'"),
        ("{tmp}/a --out=table.txt", "--out=table.txt: the ending must be .json or .csv"),
        ("{tmp}/a --out={tmp}/none/table.csv", "it cannot be written"),
        ("{tmp}/a --plot=plot.txt", "--plot=plot.txt: the ending must be .png or .pdf or .svg"),
    ],
)
def test_bad_input_is_a_one_line_error(tmp_path, words, told):
    write(tmp_path / "a", record())
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text('{"rows": [')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "rows.json").write_text(json.dumps({**record(), "rows": []}))
    with pytest.raises(UsageError) as raised:
        compare(*words.format(tmp=tmp_path).split())
    assert told.format(tmp=tmp_path) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


ODD = (None, [], {}, [{}], "x", True, -1, 10**400, float("nan"))
GONE = object()


def variants(value, odd):
    """The value with each of its parts, at any depth, replaced by odd or, for GONE, left out."""
    if odd is not GONE:
        yield odd
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            if odd is GONE:
                one = copy.deepcopy(value)
                del one[key]
                yield one
            for inner in variants(value[key], odd):
                one = copy.deepcopy(value)
                one[key] = inner
                yield one


def refusal(words):
    """The error of a comparison, which must be a UsageError; empty if there is none."""
    try:
        compare(*words)
    except UsageError as e:
        return str(e)
    return ""


@pytest.mark.parametrize("odd", [*ODD, GONE], ids=[*(f"{odd!r:.12}" for odd in ODD), "gone"])
def test_any_damaged_part_of_a_frontier_is_a_one_line_error(tmp_path, odd):
    guide = {"classifier": "8c", "classifier_scale": 1.0, "rule": "classifier()"}
    whole = write(tmp_path / "whole", record(judge="8c8b", **guide))
    assert compare(whole, "--rows", "--targets=cfg_imagenet64") == 0
    path = write(tmp_path / "parts" / "a", record()) / "evaluation" / "frontier.json"
    write(tmp_path / "parts" / "b", record())
    refusals = []
    for content in variants(json.loads((whole / "evaluation/frontier.json").read_text()), odd):
        path.write_text(json.dumps(content))
        refusals.append(refusal([tmp_path / "parts", "--rows", "--targets=cfg_imagenet64"]))
    assert sum(map(bool, refusals)) > 10
    assert "\n" not in "".join(refusals)


@pytest.mark.parametrize("odd", [*ODD, GONE], ids=[*(f"{odd!r:.12}" for odd in ODD), "gone"])
def test_any_damaged_part_of_targets_is_a_one_line_error(tmp_path, odd):
    run, content = write(tmp_path / "a", record()), published()
    content |= {"rows": content["rows"][:3], "baselines": [{"name": "x", "fid": 1.0}], "recalled": ["v"]}
    refusals = []
    for changed in variants(content, odd):
        (tmp_path / "targets.json").write_text(json.dumps(changed))
        refusals.append(refusal([run, f"--targets={tmp_path / 'targets.json'}"]))
    assert sum(map(bool, refusals)) > 5
    assert "\n" not in "".join(refusals)


def test_a_frontier_with_one_changed_digit_is_refused(tmp_path, capsys):
    content = record()
    run = write(tmp_path / "a", {**content, "sha256": content_hash(content), "tilted": []})
    assert compare(run) == 0
    content["rows"][1]["FID"] += 0.01
    (run / "evaluation" / "frontier.json").write_text(json.dumps({**content, "sha256": content_hash(record())}))
    with pytest.raises(UsageError, match=r"frontier\.json .* does not match its hash"):
        compare(run)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"rows": []}, "rows must be at least one object"),
        ({"rows": [{"w": "0", "p_uncond": 0.1}]}, "a row has the w '0'; need a number"),
        ({"rows": [{"w": 0, "p_uncond": 0.1, "fid": None}]}, "a row has the fid None"),
        ({"rows": [{"w": 0, "fid": 1.0}]}, "setting lacks p_uncond; use null for what is not stated"),
        ({"setting": published(num_step=3)["setting"]}, "unknown setting 'num_step', did you mean 'num_steps'?"),
        ({"setting": published(p_uncond=0.1)["setting"]}, "p_uncond is in setting and in rows"),
        ({"setting": None}, "holds no targets"),
    ],
)
def test_targets_with_an_invalid_structure_are_refused(changed, told):
    with pytest.raises(UsageError) as raised:
        targets.check_targets({**published(), **changed}, "file.json")
    assert told in str(raised.value)


def test_rows_flag_prints_a_line_with_network_calls_for_each_setting(tmp_path, capsys):
    run = write(tmp_path / "run", record())
    guided = record(classifier="8c8b", classifier_scale=2.0, rule="classifier()", num_steps=32)
    other = write(tmp_path / "guided", guided)
    assert compare(run, other, "--rows") == 0
    lines = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert lines[0].split()[:8] == ["run", "w", "rule", "classifier", "scale", "sampler", "T", "calls"]
    cells = [line.split()[:8] for line in lines[1:]]
    assert cells[0] == ["run", "0", "cfg()", "0", "ancestral(v=0.3)", "256", "256", "0"]
    assert cells[1] == ["run", "0.1", "cfg()", "0", "ancestral(v=0.3)", "256", "512", "0"]
    assert cells[2] == ["guided", "0", "classifier()", "2", "ancestral(v=0.3)", "32", "32", "32"]


def test_compare_names_the_guide(tmp_path, capsys):
    guided = record(classifier="8c8b7a6d5e4f", classifier_scale=2.0, rule="classifier()")
    compare(write(tmp_path / "a", guided), "--targets=cfg_imagenet64")
    out = capsys.readouterr().out
    assert "8c8b7a6d, scale 2" in out
    assert "a: not comparable with cfg_imagenet64: a classifier guides it" in out


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"sampler": "ancestral", "v": 0.3, "eta": None}, {"sampler": "ancestral(v=0.3)"}),
        ({"sampler": "ancestral", "v": None, "eta": None}, {"sampler": "ancestral()"}),
        ({"sampler": "ddim", "v": None, "eta": 0.5}, {"sampler": "ddim(eta=0.5)"}),
        (
            {"sampler": "ancestral", "v": 0.3, "eta": None, "classifier": "8c", "classifier_form": "mean"},
            {"sampler": "ancestral(v=0.3)", "classifier": "8c", "rule": "classifier(form='mean')"},
        ),
    ],
)
def test_a_frontier_of_an_older_version_is_read_in_the_current_form(tmp_path, old, new):
    earlier, today = record(**old), record(**new)
    for row in earlier["rows"]:
        del row["rule"]
    paths = [write(tmp_path / name, content) for name, content in (("earlier", earlier), ("today", today))]
    (_, first), (_, second) = gather(paths)
    assert first == second


def evaluated(**changed):
    """A record with the network evaluations of each row."""
    found = record(**changed)
    for row in found["rows"]:
        row["network_evaluations"] = row["num_steps"] * (2 if row["guidance_weight"] else 1)
    return found


def test_intervals_are_shown_and_drawn_as_spreads_over_seeds_are(tmp_path, capsys):
    content = record()
    for row in content["rows"]:
        row |= {"FID_interval": 0.0625, "FID_change": 0.5, "FID_change_interval": 0.1, "baseline": "w=0"}
    folder = write(tmp_path / "a", content)
    assert compare(folder, f"--out={tmp_path / 'table.csv'}") == 0
    assert "2 ± 0.062" in capsys.readouterr().out
    (first, _) = csv.DictReader((tmp_path / "table.csv").read_text().splitlines())
    assert float(first["a FID interval"]) == 0.0625
    (axis,) = comparison_figure([compared_run("a", content)]).axes
    assert axis.containers[0].has_xerr


def test_metrics_are_drawn_against_network_evaluations(tmp_path):
    rows = [row for steps in (64, 256) for row in evaluated(num_steps=steps)["rows"]]
    figure = cost_figure({"a": {"rows": rows}})
    axis = figure.axes[0]
    assert [text.get_text() for text in figure.legends[0].texts] == ["a: w=0", "a: w=0.1"]
    assert axis.get_xlabel() == "network evaluations per sample" and axis.get_ylabel() == "FID"
    assert [list(drawn.lines[0].get_xdata()) for drawn in axis.containers] == [[64, 256], [128, 512]]
    content = {**record(), "rows": rows}
    plotted = tmp_path / "cost.png"
    assert compare(write(tmp_path / "a", content), f"--plot={plotted}", "--against=evaluations") == 0
    assert plotted.read_bytes()[:4] == b"\x89PNG"


def test_without_several_numbers_of_steps_a_curve_is_along_w():
    (axis, _) = cost_figure({"a": evaluated()}).axes
    assert [list(drawn.lines[0].get_xdata()) for drawn in axis.containers] == [[256, 512]]
    assert [note.get_text() for note in axis.texts] == ["0", "0.1"]


def test_a_comparison_has_the_protocols_of_its_runs_and_says_where_they_differ(tmp_path, capsys):
    a, b = write(tmp_path / "a", record(rule="apg()")), write(tmp_path / "b", record())
    assert compare(a, b, f"--out={tmp_path / 'table.json'}") == 0
    lines = capsys.readouterr().out.split("protocol:")[1].splitlines()
    told = {line[2:].split("  ")[0]: line.split("  ")[-1].strip() for line in lines if line.startswith("  ")}
    assert told["rule"] == "a: apg(); b: cfg()" and told["T"] == "256" and told["s = 1 + w"] == "1, 1.1"
    cards = json.loads((tmp_path / "table.json").read_text())["protocol"]
    assert [cards[name]["rule"] for name in "ab"] == ["apg()", "cfg()"]
    for figure in (comparison_figure([compared_run(name, record_of(run / "evaluation" / "frontier.json"))
                                      for name, run in (("a", a), ("b", b))]),
                   cost_figure({"a": evaluated(), "b": evaluated()}, told)):  # fmt: skip
        assert "rule: a: apg(); b: cfg()" in figure.legends[0].get_title().get_text().replace("\n", " ")


def test_many_differing_values_of_a_protocol_are_cut():
    cards = {f"run{i}": {"step": str(i), "T": "8" if i else "4"} for i in range(100)}
    found = merged_protocol(cards)
    assert len(found["step"]) < 200 and found["step"].endswith("(100 values)")
    assert found["T"] == "run0: 4; run1, run2, … (99 results): 8"
    assert merged_protocol({"a": {"T": "8"}, "b": {}})["T"] == "a: 8; b: unknown"


def test_against_without_a_plot_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--against has no effect without --plot"):
        compare(write(tmp_path / "a", record()), "--against=evaluations")
