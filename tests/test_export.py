"""A trained model as a folder that is handed on, and its sampler as one file that jax alone runs."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import digits_config, mixture_config, same_trees

import cfgjax
from cfgjax.base.errors import UsageError
from cfgjax.cli.main import run_command
from cfgjax.convert.export_program import export_program
from cfgjax.distributed.sharding import make_mesh
from cfgjax.evaluation import held_out_bits
from cfgjax.runs.averages import load_params
from cfgjax.runs.changes import CHANGES

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "how_to" / "exporting.md"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run on digits, trained for four steps and evaluated."""
    workdir = tmp_path_factory.mktemp("digits") / "run"
    cfgjax.train(digits_config(**{"ema.rates": (0.5, 0.9)}), workdir)
    return workdir


@pytest.fixture(scope="module")
def exported(workdir):
    """The folder of the exported run."""
    folder = workdir.parent / "exported"
    assert run_command(["export", f"--workdir={workdir}", f"--out={folder}", "--license=cc0-1.0", "--ema=0.9"]) == 0
    return folder


def refused(*words):
    with pytest.raises(UsageError) as raised:
        run_command(["export", *words])
    return str(raised.value)


def test_an_exported_model_draws_the_samples_of_the_run(workdir, exported):
    run, model = cfgjax.load(workdir, ema=0.9), cfgjax.load(exported)
    assert same_trees(jax.device_get(run.params), jax.device_get(model.params))
    assert (model.step, model.ema) == (run.step, run.ema) == (4, 0.9)
    draw = lambda model: model.sample([1, 2, 3], 2.0, num_steps=3)
    assert np.array_equal(draw(run), draw(model))


def test_an_exported_model_is_evaluated_like_a_run(exported, tmp_path, monkeypatch):
    words = f"evaluate --workdir={exported} --out={tmp_path} --bits_per_dim --num_steps=3"
    assert run_command(words.split()) == 0
    assert (tmp_path / "bits_per_dim.json").exists()


@pytest.mark.parametrize("given", [True, False])
def test_a_folder_that_cannot_be_made_is_refused_before_the_likelihood_is_measured(
    exported, tmp_path, monkeypatch, given
):
    def measure(*args, **kwargs):
        raise AssertionError("the likelihood is measured")

    monkeypatch.setattr(held_out_bits, "held_out_bits", measure)
    model = shutil.copytree(exported, tmp_path / "model")
    (model / "evaluation").write_text("a file in the way")
    words = ["evaluate", f"--workdir={model}", "--bits_per_dim", "--num_steps=3"]
    with pytest.raises(UsageError, match=f"{model}/evaluation.* cannot be created: .*[Nn]ot a directory") as raised:
        run_command([*words, f"--out={model}/evaluation/bits"] if given else words)
    assert "\n" not in str(raised.value)


def test_an_exported_model_has_one_average(exported):
    with pytest.raises(UsageError, match="is an exported model of ema 0.9; it has no ema 0.5"):
        cfgjax.load(exported, ema=0.5)
    with pytest.raises(UsageError, match="is an exported model of step 4; it has no step 2"):
        cfgjax.load(exported, step=2)


def test_a_damaged_file_is_refused(exported, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match=r"model.safetensors does not match export.json; export the model again"):
        cfgjax.load(copy)


def test_any_reader_of_safetensors_reads_the_weights(workdir, exported):
    from safetensors.numpy import load_file

    found = load_file(exported / "model.safetensors")
    params, _ = load_params(workdir, cfgjax.load(workdir).settings, ema=0.9)
    assert len(found) == len(jax.tree.leaves(params))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        assert np.array_equal(found["/".join(key.key for key in path)], leaf)


def test_the_card_says_what_the_model_is(exported):
    card = (exported / "README.md").read_text()
    header = card.split("---")[1].splitlines()
    assert "license: cc0-1.0" in header and "library_name: cfgjax" in header
    assert "| steps | 4, of batch 16 |" in card and "| average of the parameters | 0.9 |" in card
    assert "not evaluated" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    scope = {}
    exec(code.replace('"exported"', repr(str(exported))), scope)
    assert scope["images"].shape == (2, 8, 8, 1)


def test_a_card_has_the_frontier_of_the_run(tmp_path):
    workdir = tmp_path / "run"
    cfgjax.train(mixture_config(), workdir)
    cfgjax.evaluate(workdir, guidance=(0, 1), num_samples=60, num_steps=4)
    assert run_command(["export", f"--workdir={workdir}", f"--out={tmp_path / 'out'}"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| w | s | FD-mixture |" in card and "![The frontier](evaluation/frontier.png)" in card
    assert (tmp_path / "out" / "evaluation" / "frontier.png").exists()
    assert "network evaluations per sample" in card


def test_the_changes_of_a_run_are_exported_with_it(workdir, tmp_path):
    run = shutil.copytree(workdir, tmp_path / "run")
    changes = [{"step": 2, "key": "optimizer.learning_rate", "before": 1e-3, "after": 1e-4}]
    (run / CHANGES).write_text(json.dumps(changes))
    assert run_command(["export", f"--workdir={run}", f"--out={tmp_path / 'exported'}"]) == 0
    assert json.loads((tmp_path / "exported" / CHANGES).read_text()) == changes


def test_what_cannot_be_exported_is_refused_before_anything_is_written(workdir, exported, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "the folder is not empty" in refused(f"--workdir={workdir}", f"--out={tmp_path / 'full'}")
    assert "give either --workdir" in refused(f"--out={tmp_path / 'x'}")
    assert "there is no step 3" in refused(f"--workdir={workdir}", f"--out={tmp_path / 'x'}", "--step=3")
    assert "the ending must be .npz" in refused(f"--workdir={workdir}", f"--out={tmp_path / 'x'}", "--format=stablehlo")
    program = [f"--workdir={workdir}", f"--out={tmp_path / 'x.npz'}", "--format=stablehlo"]
    assert "there is no platform 'rocket'" in refused(*program, "--platforms=cpu,rocket")
    assert "--license has no effect" in refused(*program, "--license=mit")
    assert "--rule has 2 values" in refused(*program, "--rule=cfg(),apg()")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_a_classifier_is_not_exported(tmp_path):
    short = {"num_steps": 2, "log_every_steps": 2, "steps_per_dispatch": 2}
    config = cfgjax.config("digits_classifier", train=short, mesh={"data": 8})
    cfgjax.train(config, tmp_path / "run")
    assert "holds a classifier" in refused(f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}")


@pytest.mark.parametrize("rule", ["cfg()", "interval(low=0.3, high=3)", "rescale(apg(eta=0))"])
def test_an_exported_program_gives_the_images_of_the_model_for_any_batch(workdir, rule):
    model = cfgjax.load(workdir, mesh=make_mesh(devices=jax.devices()[:1]))
    arrays = export_program(model, ("cpu",), rule=rule, num_steps=3)
    program = jax.export.deserialize(bytearray(arrays["program_cpu"].tobytes()))
    params = [arrays[f"param_{i}"] for i in range(sum(name.startswith("param_") for name in arrays))]
    for labels in ([3], [1, 2, 3, 4, 5]):
        w = np.linspace(1, 2, len(labels), dtype=np.float32)
        images = program.call(params, np.array(labels, np.int32), w, np.uint32(7))
        assert np.array_equal(images, model.sample(labels, w, rule=rule, num_steps=3, seed=7))
    about = json.loads(str(arrays["about"]))
    assert (about["rule"], about["num_steps"], about["image_shape"]) == (rule, "3", [8, 8, 1])


def test_a_program_is_traced_for_platforms_that_are_not_here(workdir):
    model = cfgjax.load(workdir, mesh=make_mesh(devices=jax.devices()[:1]))
    arrays = export_program(model, ("cuda", "tpu"), num_steps=3)
    params = [arrays[name] for name in arrays if name.startswith("param_")]
    for name in ("cuda", "tpu"):
        program = jax.export.deserialize(bytearray(arrays[f"program_{name}"].tobytes()))
        assert program.platforms == (name,)
        with pytest.raises(ValueError, match="platform"):
            program.call(params, np.zeros(1, "i4"), np.ones(1, "f4"), np.uint32(0))


@pytest.mark.e2e
def test_the_script_of_the_guide_runs_without_cfgjax(workdir, tmp_path):
    (script,) = re.findall(r"```python\n(import json.*?)```", GUIDE.read_text(), re.S)
    assert len(script.splitlines()) <= 20
    (tmp_path / "draw.py").write_text("import sys\nsys.modules['cfgjax'] = None\n" + script)
    words = [f"--workdir={workdir}", "--format=stablehlo", f"--out={tmp_path / 'sampler.npz'}", "--num_steps=3"]
    assert run_command(["export", *words, "--platforms=cpu"]) == 0
    ran = subprocess.run([sys.executable, "draw.py", "sampler.npz"], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert np.load(tmp_path / "images.npy").shape == (10, 8, 8, 1)
