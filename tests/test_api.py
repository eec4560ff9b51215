"""The Python API of notebooks: experiments, configs, training and evaluating without a command line."""

import json
import threading
from types import SimpleNamespace

import pytest
import runs
from tiny import EXPERIMENTS, digits_config, mixture_config

import cfgjax
from cfgjax.base.errors import UsageError
from cfgjax.cli.main import run_command
from cfgjax.training.extensions import ExtensionError


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run on three Gaussians, trained for a moment."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    runs.train(mixture_config(**{"mesh.data": 1}), workdir)
    return workdir


def test_experiments_have_the_first_lines_of_their_files():
    found = cfgjax.experiments()
    assert found["digits"] in (EXPERIMENTS / "digits.py").read_text()
    assert "base" not in found and all(found.values())


def test_a_config_is_an_experiment_with_changes_by_section():
    config = cfgjax.config("digits", train=dict(num_steps=100), seed=1)
    assert (config.train.num_steps, config.seed) == (100, 1)
    assert config.to_dict() == cfgjax.load_config("digits", **{"train.num_steps": 100, "seed": 1}).to_dict()


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("digit", {}, "did you mean 'digits'?"),
        ("digits", {"train": {"num_step": 9}}, "unknown config key 'train.num_step', did you mean 'train.num_steps'?"),
        ("digits", {"train": {"num_steps": "9"}}, "train.num_steps is '9'"),
    ],
)
def test_a_wrong_name_in_a_config_has_the_nearest_one(name, changes, told):
    with pytest.raises(UsageError) as raised:
        cfgjax.config(name, **changes)
    assert told in str(raised.value)


def test_training_returns_a_run_with_its_metrics_and_its_model(tmp_path):
    seen = []
    listen = lambda step, metrics: seen.append((step, metrics["loss"]))
    run = cfgjax.train(mixture_config(), tmp_path / "run", on_log=listen)
    assert run.done and run.metrics["step"] == 40
    assert seen == [(line["step"], line["loss"]) for line in run.history if "loss" in line]
    assert [step for step, _ in seen] == [10, 20, 30, 40]
    assert run.model.step == 40 and run.model.workdir == run.workdir
    assert repr(run) == f"TrainedRun({tmp_path / 'run'}, step 40, loss {run.metrics['loss']:.4g})"


def test_a_function_that_fails_at_a_log_is_named(tmp_path):
    def draw_curve(step, metrics):
        raise ZeroDivisionError

    with pytest.raises(ExtensionError, match="writer on_log=draw_curve failed at step 10"):
        cfgjax.train(mixture_config(), tmp_path / "run", on_log=draw_curve)


def test_a_run_in_a_thread_is_stopped_by_its_flag_and_resumes_to_the_same_result(tmp_path):
    stop, ended = SimpleNamespace(signal=None), []

    def listen(step, metrics):
        if step == 20:
            stop.signal = "the button"

    work = lambda: ended.append(cfgjax.train(mixture_config(), tmp_path / "run", on_log=listen, stop=stop))
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    (run,) = ended
    assert not run.done and 20 <= run.metrics["step"] < 40 and "stopped" in repr(run)
    resumed = cfgjax.train(mixture_config(), tmp_path / "run")
    straight = cfgjax.train(mixture_config(), tmp_path / "straight")
    assert resumed.metrics["loss"] == straight.metrics["loss"]


def test_without_a_flag_a_run_in_a_thread_needs_no_signals(tmp_path):
    ended = []
    thread = threading.Thread(target=lambda: ended.append(cfgjax.train(mixture_config(), tmp_path / "run")))
    thread.start()
    thread.join()
    assert ended[0].done


def test_evaluating_gives_what_the_command_writes(workdir, tmp_path):
    words = f"evaluate --workdir={workdir} --out={tmp_path / 'command'} --guidance=0,1 --num_samples=60 --num_steps=4"
    assert run_command(words.split()) == 0
    options = {"guidance": (0, 1), "num_samples": 60, "num_steps": 4}
    found = cfgjax.evaluate(workdir, **options, out=tmp_path / "python")
    written = [json.loads((tmp_path / name / "frontier.json").read_text()) for name in ("command", "python")]
    assert written[0]["rows"] == written[1]["rows"] == json.loads(json.dumps(found.rows))
    assert found.to_dict()["protocol"] == written[0]["protocol"]
    assert len(found.figure().axes) == 2 and found.figure()._repr_png_().startswith(b"\x89PNG")
    assert found.differences.startswith("difference from w=0")


def test_an_evaluation_of_a_model_is_a_table_in_a_notebook(workdir, tmp_path):
    model = cfgjax.load(workdir)
    found = cfgjax.evaluate(model, guidance=1, num_samples=60, num_steps=4, neighbours=False, out=tmp_path)
    html, lines = found._repr_html_(), repr(found).splitlines()
    assert html.startswith("<table>") and html.count("<tr>") == len(lines)
    for cell in lines[0].split():
        assert f">{cell}</th>" in html


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"guidanc": 1}, "unknown option 'guidanc', did you mean 'guidance'?"),
        ({"guidance": (1, 1)}, "a value occurs twice"),
        ({"baseline": "guidance=9"}, "no setting has guidance_weight=9"),
        ({"num_samples": 1}, "num_samples"),
    ],
)
def test_bad_options_of_an_evaluation_are_one_line(workdir, tmp_path, options, told):
    with pytest.raises(UsageError) as raised:
        cfgjax.evaluate(workdir, **options, out=tmp_path / "out")
    assert told in str(raised.value)


def test_a_model_of_no_run_cannot_be_evaluated():
    from cfgjax.models.model import Model

    with pytest.raises(UsageError, match="the model does not belong to a run"):
        cfgjax.evaluate(Model(mixture_config(), {}, bind_params=lambda params: None))


def test_a_grid_has_a_row_for_each_label_and_a_column_for_each_setting(tmp_path):
    run = cfgjax.train(digits_config(), tmp_path / "run")
    narrow = run.model.grid_image([3, "4"], per_cell=2, guidance=1.0)
    wide = run.model.grid_image([3, "4"], per_cell=2, guidance=(-1.0, 1.0, 3.0))
    assert wide.height == narrow.height and wide.width > 2 * narrow.width
    with pytest.raises(UsageError, match="unknown option 'guidanc', did you mean 'guidance'?"):
        run.model.grid_image(guidanc=1)
