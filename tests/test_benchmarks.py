"""The benchmarks run and report; how fast is no matter here."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from compiling import QUICKLY
from tiny import mixture_config, of_mixture

from cfgjax.data.sources.registry import toy_mixture
from cfgjax.diffusion.guidance import cfg, conditional
from cfgjax.models.model import Model

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FIGURES = {
    "parameters", "batch_size", "images_per_second", "images_per_second_min", "images_per_second_max",
    "compile_seconds", "flops_per_image", "flops_per_second", "program_bytes", "resident_bytes",
}  # fmt: skip
OWN = {
    "train_step": (["--steps_per_repeat=2"], {"steps_per_repeat": 2, "steps_per_dispatch": 2}, "ms_per_step"),
    "sampling": (["--samplers=ddim", "--nooverhead"], {"sampler": "ddim", "num_steps": 4}, "ms_per_network_call"),
}


def run(name, *flags):
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *flags]
    environ = os.environ | QUICKLY  # the figures are not looked at
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environ)


@pytest.mark.e2e
@pytest.mark.parametrize("name", OWN)
def test_figures_are_positive_finite_and_ordered(name):
    flags, settings, own_figure = OWN[name]
    ran = run(name, "--configs=tiny", "--repeats=2", "--json=-", *flags)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["benchmark"] == name
    assert all(report[fact] for fact in ("device", "jax", "num_devices"))
    (result,) = report["results"]
    assert {"config": "tiny", "batch_size": 4, "dtype": "float32", **settings}.items() <= result.items()
    assert all(0 < result[figure] < math.inf for figure in FIGURES | {own_figure})
    assert len(result["repeat_seconds"]) == 2
    assert result["images_per_second_min"] <= result["images_per_second"] <= result["images_per_second_max"]
    assert "images/s" in ran.stderr  # the table makes way for the JSON


@pytest.mark.e2e
def test_prepared_sets_and_preparing_are_timed():
    small = ["--num_examples=64", "--images_per_repeat=64", "--batch_size=16", "--workers=0", "--num_jpegs=2"]
    ran = run(
        "input", "--configs=", "--megabytes=", "--encodings=raw", "--crops=area", "--repeats=1", "--json=-", *small
    )
    assert ran.returncode == 0, ran.stderr
    prepared, preparing = json.loads(ran.stdout)["results"]
    assert prepared["encoding"] == "raw" and prepared["bytes_per_image"] > 64 * 64 * 3
    assert 0 < preparing["jpegs_per_cpu_second"] < preparing["decoded_per_cpu_second"] < math.inf


@pytest.mark.soak  # test_accelerator.py runs the same benchmark at toy sizes
def test_the_accelerators_benchmark_runs_on_a_cpu_and_agrees_with_it():
    ran = run("device", "--configs=tiny", "--ceiling_size=64", "--repeats=1", "--num_steps=4", "--json=-")
    assert ran.returncode == 0, ran.stderr
    results = json.loads(ran.stdout)["results"]
    by_table = {name: [r for r in results if r["table"] == name] for name in ("ceilings", "agreement", "kernels")}
    assert all(0 < row["rate"] < math.inf for row in by_table["ceilings"])
    exact, _, *halved = by_table["agreement"]
    assert exact["largest"] < 1e-5 and all(1e-4 < row["largest"] < 0.05 for row in halved)
    assert by_table["kernels"][0]["ms"] > 0


@pytest.mark.e2e
def test_the_cost_of_guidance_is_reported_next_to_its_flops():
    rules = ["interval(low=0.3, high=0.7, unit='fraction')", "classifier(conditional(), scale=1, form='z')"]
    ran = run("sampling", "--configs=", f"--rules={','.join(rules)}", "--image_size=16", "--repeats=1", "--json=-")
    assert ran.returncode == 0, ran.stderr
    results = json.loads(ran.stdout)["results"]
    assert [row["guidance"] for row in results] == rules
    for row in results:
        assert row["overhead"] == row["guided_seconds"][0] / row["needed_seconds"][0] - 1


@pytest.mark.e2e
def test_the_cost_of_perturbed_attention_is_reported_next_to_that_of_cfg():
    flags = ("--configs=", "--nooverhead", "--attention_config=tiny", "--num_steps=2", "--repeats=1", "--json=-")
    ran = run("sampling", *flags)
    assert ran.returncode == 0, ran.stderr
    results = json.loads(ran.stdout)["results"]
    assert [row["guidance"] for row in results] == ["pag()", "pag(layers='all')", "seg()", "seg(layers='all')"]
    for row in results:
        assert row["overhead"] == row["seconds"][0] / row["cfg_seconds"][0] - 1


@pytest.mark.e2e
def test_peers_runs_without_torch_and_reports_it():
    ran = run("peers", "--configs=tiny", "--contestants=eager,cfgjax", "--repeats=2", "--batch_size=2", "--json=-")
    assert ran.returncode == 0, ran.stderr
    *peers, ours = json.loads(ran.stdout)["results"]
    assert ours["contestant"] == "cfgjax" and (ours["times_eager"] is None) == (not peers)
    assert all(peer["parameters"] == ours["parameters"] for peer in peers)
    assert bool(peers) == ("eager: left out, torch is not installed" not in ran.stderr)
    assert all(0 < ours[figure] < math.inf for figure in ("ms_per_step", "compile_seconds", "resident_bytes"))


@pytest.mark.e2e
def test_the_runner_reports_each_figure_once_with_its_command(tmp_path):
    path, only = tmp_path / "all.json", ["train_step", "input"]
    ran = run("run", f"--only={','.join(only)}", "--configs=tiny", "--repeats=1", "--batch_size=8", f"--json={path}")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(path.read_text())
    rows = told["rows"]
    assert all(told[fact] for fact in ("device", "num_devices", "jax", "commit"))
    assert list(dict.fromkeys(row["benchmark"] for row in rows)) == list(told["reports"]) == only
    assert len(rows) == sum(len(report["results"]) for report in told["reports"].values())
    assert all(0 < row["rate"] < math.inf for row in rows)
    first = told["reports"]["train_step"]["results"][0]
    assert [rows[0][name] for name in ("rate", "resident_bytes", "compile_seconds")] == [
        first[name] for name in ("images_per_second", "resident_bytes", "compile_seconds")
    ]
    for row in rows:
        assert row["case"] in ran.stdout and f"] {row['command']}\n" in ran.stdout
    _, script, *words = rows[-1]["command"].split()
    again = run(Path(script).stem, *words, "--json=-")
    assert again.returncode == 0, again.stderr
    results = json.loads(again.stdout)["results"]
    assert [(result["table"], result["state_bytes"]) for result in results] == [("saving", 100_000_000)]


def test_every_table_of_the_benchmarks_has_rows_in_the_summary(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import harness
    import run as runner

    found: dict = {}
    monkeypatch.setattr(harness, "main", lambda argv, doc, given, tables, *configs, **options: found.update(tables))
    for name in runner.BENCHMARKS:
        importlib.import_module(name).main([f"{name}.py"])
    assert found.keys() == runner.TABLES.keys()


def test_a_failed_benchmark_is_reported_after_the_rows_of_the_others(monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import run as runner

    figures = {"table": "training", "flags": ["--configs=tiny"], "config": "tiny", "resident_bytes": 2_000_000}
    figures |= {f"images_per_second{which}": 3.0 for which in ("", "_min", "_max")}
    report = {"device": "cpu", "num_devices": 1, "jax": "0", "results": [figures]}
    ends = {"evaluation": (3, None), "train_step": (0, report)}
    monkeypatch.setattr(runner, "measure", lambda benchmark, words: ends[benchmark])
    assert runner.main(["run.py", "--only=evaluation,train_step", "--configs=tiny"]) == 3
    told = capsys.readouterr()
    assert "[1] python benchmarks/train_step.py --configs=tiny --repeats=3\n" in told.out
    assert told.out.splitlines()[-1].split() == ["[1]", "train_step", "tiny", "3", "images/s", "3–3", "-", "2", "-"]
    assert told.err.splitlines()[-1] == "evaluation ended with exit code 3"


@pytest.mark.parametrize(
    ("name", "flag", "told"),
    [
        ("run", "--only=training,input", "unknown benchmark 'training'"),
        ("run", "--configs=tini", "unknown configuration 'tini', did you mean 'tiny'?"),
        ("run", "--batch_size=0", "flag --batch_size=0"),
        ("run", "--json=/nowhere/all.json", "--json=/nowhere/all.json: it cannot be written in /nowhere"),
        *[(name, "--configs=digits,smal8", "unknown configuration 'smal8', did you mean 'small8'?") for name in OWN],
        ("evaluation", "--configs=digits,smal8", "unknown configuration 'smal8', did you mean 'small8'?"),
        ("evaluation", "--parts=metric", "unknown part 'metric', did you mean 'metrics'?"),
        ("evaluation", "--networks=inceptoin", "unknown network 'inceptoin', did you mean 'inception'?"),
        ("evaluation", "--metrics=moment", "unknown metric 'moment', did you mean 'moments'?"),
        ("evaluation", "--num_images=100", "100 images are not whole batches of 16; give another --num_images"),
    ],
)
def test_invalid_measurements_are_reported_before_any_work(name, flag, told, monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    assert importlib.import_module(name).main([f"{name}.py", flag]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith(f"{name}.py: error: {told}")


EVALUATION = [
    "--configs=tiny", "--guidance=1", "--batch_size=4", "--num_steps=2",
    "--networks=classifier", "--network_batch_sizes=4,8", "--num_images=8",
    "--metrics=moments,knn_entropy", "--num_samples=20", "--num_features=3",
]  # fmt: skip


@pytest.mark.e2e
def test_every_part_of_evaluation_is_timed():
    ran = run("evaluation", *EVALUATION, "--repeats=2", "--json=-")
    assert ran.returncode == 0, ran.stderr
    results = json.loads(ran.stdout)["results"]
    assert [result["table"] for result in results] == ["generation", *["networks"] * 2, *["metrics"] * 2]
    generation, *networks, moments, entropy = results
    assert [generation[name] for name in ("config", "guidance_weight", "batch_size", "num_steps")] == ["tiny", 1, 4, 2]
    assert generation["image_calls_per_second"] == pytest.approx(2 * generation["images_per_second"])
    assert [result["batch_size"] for result in networks] == [4, 8]
    assert max(result["share_of_best"] for result in networks) == 1
    assert [(result["metric"], result["num_features"]) for result in (moments, entropy)] == [
        ("moments", 3),
        ("knn_entropy", 2),
    ]
    for result in results:
        figures = [value for key, value in result.items() if "second" in key and key != "repeat_seconds"]
        assert all(0 < value < math.inf for value in [*figures, *result["repeat_seconds"], result["resident_bytes"]])
        assert len(result["repeat_seconds"]) == 2
    assert all(heading in ran.stderr for heading in ("images/s × T", "of the best", "s min–max"))


@pytest.mark.slow
def test_the_sampler_compiled_separately_draws_the_same_samples_and_guidance_doubles_flops(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import sampling

    config, index = mixture_config(), np.arange(8)
    mixture = toy_mixture(config.data.means, config.data.stds, config.data.weights)

    def flops(**options):
        model = Model(config, {}, bind_params=of_mixture(mixture))
        draw = lambda: np.asarray(model.sampler(**options)(index, index % model.num_classes, np.ones(8)))
        before = draw()
        program, _, flops_per_image = sampling.compile_sampler(model, 8, **options)
        assert np.array_equal(draw(), before)
        assert program.memory_analysis().output_size_in_bytes == before.nbytes // model.mesh.size
        return flops_per_image

    assert flops(num_steps=3, rule=cfg()) == pytest.approx(2 * flops(num_steps=3, rule=conditional()), rel=0.05)
