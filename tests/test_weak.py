"""Laws of the weak model of autoguidance, through `Model` and the commands."""

import shutil

import jax
import numpy as np
import pytest
import runs
from tiny import digits_config, mixture_config

import cfgjax
from cfgjax.base.errors import UsageError
from cfgjax.base.files import read_npz
from cfgjax.cli import main as cli
from cfgjax.cli.launch import check_command
from cfgjax.data.sources.registry import toy_mixture
from cfgjax.diffusion.guidance import autoguidance, cfg
from cfgjax.distributed.sharding import make_mesh
from cfgjax.evaluation.frontier.frontier_settings import Setting, make_settings
from cfgjax.models.model import Model
from cfgjax.models.weak import WeakRun, check_weak, parse_weak, weak_text
from cfgjax.runs.sample_options import axes
from cfgjax.runs.settings import Settings

CONFIG = mixture_config()
MIXTURE = toy_mixture(CONFIG.data.means, CONFIG.data.stds, CONFIG.data.weights)
LABELS = np.arange(16) % 3


def scaled(params):
    """The mixture's predictions of z times the one parameter."""
    return lambda z, logsnr, cond: MIXTURE.predict(params["factor"] * z, logsnr, cond["label"])


def make(factor, devices=1, config=CONFIG, bind=scaled):
    mesh = make_mesh(devices=jax.devices()[:devices])
    model = Model(config, {}, mesh=mesh, bind_params=bind)
    model.put({"factor": np.float32(factor)})
    return model


@pytest.fixture(scope="module")
def strong():
    return make(1.0)


def draw(model, weak, w=1.5, **options):
    return model.sample(LABELS, w, rule=autoguidance(weak), num_steps=6, **options)


def test_a_model_with_the_same_parameters_has_no_effect_bit_for_bit(strong):
    weak = make(1.0)
    np.testing.assert_array_equal(draw(strong, weak, 3.0), draw(strong, weak, 0.0))
    assert np.abs(draw(strong, make(0.5), 3.0) - draw(strong, weak, 0.0)).max() > 0.1


@pytest.mark.slow
def test_samples_are_the_same_on_any_number_of_devices_and_with_any_batch_size(strong):
    one, two = draw(strong, make(0.5)), draw(make(1.0, 2), make(0.5, 2))
    np.testing.assert_allclose(one, two, atol=1e-4)
    np.testing.assert_allclose(one, draw(strong, make(0.5), batch_size=5), atol=1e-4)
    np.testing.assert_allclose(one, draw(make(1.0, 8), make(0.5, 8), batch_size=1), atol=1e-4)


def test_another_weak_model_of_the_same_network_and_another_weight_compile_nothing(strong):
    traces = []

    def bind(params):
        traces.append(None)
        return scaled(params)

    model = make(1.0, bind=bind)
    for factor, w in ((0.5, 1.0), (0.7, 2.0)):
        draw(model, make(factor), w)
    assert len(traces) == 1


def test_the_weak_parameters_are_arguments_of_the_program(strong):
    weak = make(0.5)
    first = draw(strong, weak)
    weak.put({"factor": np.float32(0.7)})
    np.testing.assert_array_equal(draw(strong, weak), draw(strong, make(0.7)))
    assert np.abs(draw(strong, weak) - first).max() > 0.01


def test_it_works_without_a_null_label(strong):
    model = make(1.0)
    model.has_null_label = False
    np.testing.assert_array_equal(draw(model, make(0.5)), draw(strong, make(0.5)))
    options = axes({}, given={"guidance": (0.0, 2.0), "rule": ("autoguidance()",), "sampler": ("ddim()",)})
    weak = Weak(model, "")
    assert [setting.options.guidance for setting in make_settings(options, model, weak=weak)] == [0.0, 2.0]


IDENTITY = {"checkpoint": "8c8b7a6d5e4f", "step": 600, "ema": 0.5}


class Weak(WeakRun):
    """A weak model without a workdir."""

    identity = property(lambda self: IDENTITY)


def test_the_identity_of_samples_holds_the_weak_checkpoint_and_that_of_other_rules_does_not_change(strong):
    given = {"guidance": (1.0,), "rule": ("cfg()", "autoguidance()")}
    plain, guided, *exact = make_settings(axes({}, given=given), strong, weak=Weak(strong, ""))
    assert guided.identity["weak"] == IDENTITY
    assert guided.identity["rule"] == "autoguidance()"
    assert guided.row["weak"] == "8c8b7a6d, step 600, ema 0.5"
    assert plain.identity == Setting(plain.options).identity
    assert "weak" not in plain.identity
    assert plain.row["weak"] is None
    assert [setting.options.rule for setting in exact] == [cfg()]  # exact scores have no weak model
    assert weak_text({**IDENTITY, "ema": 0.0}) == "8c8b7a6d, step 600, no ema"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data.num_classes": 5}, "the weak model's number of classes is 5, the model's 3"),
        ({"data.image_shape": (4,)}, r"the weak model's image size is \(4,\), the model's \(2,\)"),
        ({"diffusion.logsnr_max": 9.0}, "the weak model's process is .* 9.*, the model's .* 20"),
    ],
)
def test_a_weak_model_of_other_data_or_another_process_is_refused(strong, changed, message):
    weak = make(0.5)
    weak.settings = Settings.from_config(mixture_config(**changed))
    with pytest.raises(UsageError, match=message):
        draw(strong, weak)


def test_an_upsampler_is_no_weak_model_of_a_network_without_its_input():
    upsampler = digits_config()
    upsampler.data.low_res_size = 4
    upsampler.model.low_res = True
    with pytest.raises(UsageError, match="the weak model's low-resolution input is 4, the model's none"):
        check_weak(Settings.from_config(upsampler), Settings.from_config(digits_config()))


def test_bad_input_is_a_one_line_error(strong):
    with pytest.raises(UsageError, match=r"rule autoguidance\(\) has no weak"):
        draw(strong, None)
    with pytest.raises(UsageError, match="on different meshes"):
        draw(make(1.0, 2), make(0.5))
    rules = {"rule": ("autoguidance()",), "guidance": (1.0,)}
    with pytest.raises(UsageError, match=r"rule autoguidance\(\) needs a weak model; give its run with --weak"):
        make_settings(axes({}, given=rules), strong)
    with pytest.raises(UsageError, match=r"--weak is given, but rule cfg\(\) has no weak model"):
        make_settings(axes({}, given={"guidance": (1.0,)}), strong, weak=Weak(strong, ""))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("runs/a", ("runs/a", None, None)),
        ("runs/a@600", ("runs/a", 600, None)),
        ("runs/a,ema=0.5", ("runs/a", None, 0.5)),
        ("runs/a,b@c@600,ema=0", ("runs/a,b@c", 600, 0.0)),
    ],
)
def test_a_weak_run_is_a_workdir_with_a_step_and_an_average(text, found):
    assert parse_weak(text) == found


@pytest.mark.parametrize("text", ["runs/a@", "runs/a@new", "@600", "runs/a,ema=", "runs/a,ema=x", "runs/a@600,step=3"])
def test_text_that_names_no_weak_run_is_refused(text):
    with pytest.raises(UsageError, match="--weak=") as error:
        parse_weak(text)
    assert "\n" not in str(error.value)


def test_a_launched_or_swept_command_takes_the_flag():
    given = check_command(["evaluate", "--workdir=runs/a", "--weak=runs/a@20,ema=0", "--rule=autoguidance()"])
    assert given.weak == "runs/a@20,ema=0"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run on three Gaussians, saved every ten steps."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    runs.train(mixture_config(**{"mesh.data": 1, "ema.rates": (0.5,)}), workdir)
    return workdir


def evaluated(workdir, out, *flags):
    words = f"evaluate --workdir={workdir} --out={out} --num_samples=32 --num_steps=4 --guidance=1 --features=mixture"
    assert cli.run_command([*words.split(), *flags]) == 0
    return sorted(path.name for path in (out / "samples").iterdir())


@pytest.mark.slow
def test_samples_of_another_weak_step_or_average_are_never_mixed(workdir, tmp_path):
    found = set()
    for count, end in enumerate(["@20", "@30", "@30,ema=0"], 1):
        found |= set(evaluated(workdir, tmp_path / "evaluation", f"--weak={workdir}{end}"))
        assert len(found) == count
    table = (tmp_path / "evaluation" / "frontier.csv").read_text()
    assert "autoguidance()" in table
    assert "step 30, no ema" in table
    again = evaluated(workdir, tmp_path / "evaluation", f"--weak={workdir}@20,ema=0.5")
    assert set(again) == found


@pytest.mark.slow
def test_the_command_draws_what_python_draws(workdir, tmp_path):
    evaluated(workdir, tmp_path, f"--weak={workdir}@20")
    model, weak = cfgjax.load(workdir), cfgjax.load(workdir, step=20)
    labels = np.arange(32) % 3
    drawn = model.sample(labels, 1.0, rule=autoguidance(weak), num_steps=4)
    (shard,) = (tmp_path / "samples").glob("*/[0-9]*.npz")
    np.testing.assert_allclose(read_npz(shard)["image"], drawn, atol=1e-4)


@pytest.mark.slow
def test_bad_weak_runs_are_refused_before_anything_is_drawn(workdir, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(workdir, other)
    text = (other / "config.json").read_text()
    (other / "config.json").write_text(text.replace('"logsnr_max": 20.0', '"logsnr_max": 9.0'))
    for flag, message in {
        f"--weak={tmp_path}/none": "holds no run",
        f"--weak={workdir}@7": "there is no step 7",
        f"--weak={workdir},ema=0.25": "ema 0.25 is neither a rate of the run",
        f"--weak={other}": "the weak model's process is",
        "--weak=": "the path is empty",
    }.items():
        for command in (f"sample --out={tmp_path}/x.png", f"evaluate --out={tmp_path}/evaluation"):
            with pytest.raises(UsageError, match=message) as error:
                cli.run_command([*command.split(), f"--workdir={workdir}", flag])
            assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match=r"--weak is given, but rule cfg\(\) has no weak model"):
        cli.run_command(f"sample --workdir={workdir} --out={tmp_path}/x.png --weak={workdir} --rule=cfg()".split())
    assert not (tmp_path / "x.png").exists()
    assert not (tmp_path / "evaluation" / "samples").exists()


@pytest.mark.slow
def test_sample_draws_a_picture_with_a_weak_model(workdir, tmp_path):
    words = f"sample --workdir={workdir} --weak={workdir}@20 --labels=0,1 --guidance=0,2 --num_steps=4 --per_cell=2"
    assert cli.run_command([*words.split(), f"--out={tmp_path}/x.png"]) == 0
    assert (tmp_path / "x.png").exists()
