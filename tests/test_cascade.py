"""Laws of upsampling and of cascades, with a base and an upsampler whose answers are known."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import digits_config, settings

from cfgjax.base.errors import UsageError
from cfgjax.cli.main import run_command
from cfgjax.data.batches import to_uint8
from cfgjax.data.sources.registry import open_source
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import eps_from_x
from cfgjax.distributed.collectives import gather_rows
from cfgjax.distributed.sharding import make_mesh
from cfgjax.evaluation.features.networks import FeatureNetwork
from cfgjax.evaluation.features.reference import of_dataset
from cfgjax.evaluation.frontier import plan
from cfgjax.evaluation.frontier.measure import measure
from cfgjax.models import cascade as cascade_module
from cfgjax.models.cascade import Cascade
from cfgjax.models.model import Model
from cfgjax.runs.checkpoint import Checkpoints
from cfgjax.runs.config import to_json
from cfgjax.runs.training_settings import CheckpointSettings
from cfgjax.training.state import TrainState

LABELS = np.arange(6) % 10
SMALL = {"data.image_shape": (4, 4, 1), "model.attention_resolutions": (4,)}


def config(**changes):
    changed = digits_config(**changes)
    changed.data.low_res_size = 4
    changed.model.low_res = True
    return changed


def mesh(devices=1):
    return make_mesh(devices=jax.devices()[:devices])


def known(z, x, logsnr):
    """The prediction of a model that knows x."""
    x = jnp.broadcast_to(x, z.shape)
    return Prediction(x, eps_from_x(z, x, logsnr))


def base(value=lambda label: label / 5 - 1, **changes):
    """A `Model` of 4×4 images, all of whose pixels are value(label)."""

    def bind(params):
        return lambda z, logsnr, cond: known(z, value(cond["label"])[:, None, None, None], logsnr)

    return Model(digits_config(**SMALL | changes), {}, mesh=mesh(), bind_params=bind)


def doubled(low_res):
    """Small images enlarged by repeating pixels."""
    return low_res.repeat(2, axis=1).repeat(2, axis=2)


def upsampler(seen=None, devices=1, **changes):
    """A `Model` whose images are the small ones `doubled`; seen collects what it is given."""

    def bind(params):
        def predict(z, logsnr, cond):
            jax.debug.callback(lambda given: seen is None or seen.append(np.asarray(given)), cond["low_res"])
            return known(z, doubled(cond["low_res"]), logsnr)

        return predict

    return Model(config(**changes), {}, mesh=mesh(devices), bind_params=bind)


def images(n=6):
    return np.random.default_rng(0).integers(0, 256, (n, 4, 4, 1), np.uint8)


@pytest.mark.parametrize("stage", ["base", "upsampler"])
def test_the_stage_with_a_non_finite_sample_is_named(stage):
    cascade = Cascade(base(lambda label: jnp.where(label == 4, jnp.nan if stage == "base" else 0.5, 0.5)), upsampler())
    if stage == "upsampler":
        bind = cascade.upsampler.bind
        broken = lambda cond: cond | {"low_res": jnp.full_like(cond["low_res"], jnp.nan)}
        cascade.upsampler.bind = lambda params: lambda z, logsnr, cond: bind(params)(z, logsnr, broken(cond))
    with pytest.raises(ArithmeticError, match=rf"^{stage}: sample [02] at w = 0 has a value that is not finite"):
        cascade.sample([1, 3, 4], num_steps=2, upsampling={"num_steps": 2})


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [0.0, 2.0])
@pytest.mark.parametrize("options", [{}, {"batch_size": 4}, {"devices": 2}], ids=str)
def test_each_sample_belongs_to_its_own_small_image(guidance, options):
    options = dict(options)
    model = upsampler(devices=options.pop("devices", 1))
    found = model.sample(LABELS, guidance, low_res=images(), num_steps=4, **options)
    assert np.abs(found.astype(int) - doubled(images())).max() <= 1


def test_a_cascade_enlarges_the_samples_of_its_base():
    cascade = Cascade(base(), upsampler())
    found = cascade.sample(LABELS, 1.0, num_steps=4, seed=3, upsampling={"num_steps": 5})
    assert found.shape == (6, 8, 8, 1)
    np.testing.assert_array_equal(found, doubled(base().sample(LABELS, 1.0, num_steps=4, seed=3)))


def test_the_sampler_of_a_cascade_draws_the_same_in_any_order_and_batch():
    cascade = Cascade(base(), upsampler(), {"num_steps": 5})
    draw = cascade.sampler(num_steps=4, seed=3)
    index = np.array([5, 0, 3, 2])
    found = to_uint8(gather_rows(draw(index, LABELS[index], np.ones(4, np.float32))))
    np.testing.assert_array_equal(found, cascade.sample(LABELS, 1.0, num_steps=4, seed=3)[index])


def test_a_sampler_names_the_stage_with_a_non_finite_sample():
    draw = Cascade(base(lambda label: jnp.where(label == 4, jnp.nan, 0.5)), upsampler()).sampler(num_steps=2)
    with pytest.raises(ArithmeticError, match=r"^base: sample 7 at w = 0"):
        draw(np.array([6, 7]), np.array([1, 4]), np.zeros(2, np.float32))


def halves(params, images):
    """The means of four parts of an image; as logits the first ten pixels."""
    flat = images.reshape(len(images), -1).astype(jnp.float32) / 255
    return {"features": flat.reshape(len(flat), 4, -1).mean(-1), "logits": flat[:, :10]}


@pytest.fixture
def stages(tmp_path, monkeypatch):
    """{stage: workdir} of a cascade whose networks know their images, and whose checkpoints have one number."""
    made = {"base": (base, digits_config(**SMALL)), "upsampler": (upsampler, config())}

    def save(stage, value):
        workdir, (_, own) = tmp_path / stage, made[stage]
        shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
        state = TrainState(jnp.int32(1), {"w": jnp.zeros(1)}, {"0.99": {"w": jnp.full(1, value)}}, ())
        with Checkpoints(workdir / "checkpoints", CheckpointSettings(1)) as checkpoints:
            checkpoints.save(1, state, [])
        (workdir / "config.json").write_text(to_json(own))

    def load(workdir, step=None, ema=None, mesh=None):
        model = made[Path(workdir).name][0]()
        model.step, model.ema = 1, 0.99
        return model

    for stage in made:
        save(stage, 1.0)
    network = FeatureNetwork("classifier", "digest", halves, {}, judges=True)
    monkeypatch.setattr(cascade_module, "load", load)
    monkeypatch.setattr(plan, "load_networks", lambda *given, **options: (network, None))
    return tmp_path, save


def evaluate(folder, *flags):
    """frontier.json of the cascade in a folder, and the settings whose samples it drew."""
    words = f"evaluate --base={folder}/base --upsampler={folder}/upsampler --out={folder}/out --num_samples=20"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("out/samples/*/0*.npz")}
    assert run_command([*words.split(), "--num_steps=2", "--batch_size=8", *flags]) == 0
    after = {path: path.stat().st_mtime_ns for path in folder.glob("out/samples/*/0*.npz")}
    drawn = {path.parent.name for path in after if after[path] != before.get(path)}
    return json.loads((folder / "out" / "frontier.json").read_text()), drawn


@pytest.mark.slow
def test_a_frontier_of_a_cascade_has_the_metrics_of_its_images(stages):
    folder, _ = stages
    found, drawn = evaluate(folder, "--guidance=0,1", "--upsampler_num_steps=3")
    assert len(drawn) == 2
    assert [row["guidance_weight"] for row in found["rows"]] == [0, 1]
    labels = np.arange(20) % 10
    images = doubled(base().sample(labels, 0.0, num_steps=2))
    network = FeatureNetwork("classifier", "digest", halves, {}, judges=True)
    data = open_source(settings(config()).data)
    reference = of_dataset(data, network, "digits")
    expected = measure(lambda start, stop: (images[start:stop], labels[start:stop]), 20, network, reference)
    assert found["rows"][0]["FD-classifier"] == expected["FD-classifier"]
    assert found["config"]["data"]["image_shape"] == [8, 8, 1]
    assert found["upsampler"]["options"]["num_steps"] == 3
    assert found["protocol"]["upsampler"].endswith("step 1, ema 0.99, num_steps=3, grid=edm()")


@pytest.mark.slow
def test_samples_of_a_cascade_depend_on_both_networks_and_on_the_options_of_both(stages):
    folder, save = stages
    evaluate(folder, "--guidance=1")
    assert not evaluate(folder, "--guidance=1")[1]  # nothing is drawn twice
    assert len(evaluate(folder, "--guidance=1", "--upsampler_num_steps=4")[1]) == 1
    for stage in ("base", "upsampler"):
        save(stage, 2.0)
        assert len(evaluate(folder, "--guidance=1")[1]) == 1


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--base=base --out=out", "--upsampler must be given"),
        ("--base=base --upsampler=up", "--out must be given"),
        ("--base=base --upsampler=up --workdir=run", "give either --workdir"),
        ("--workdir=run --upsampler_num_steps=3", "--upsampler_num_steps needs --base and --upsampler"),
        ("--base=base --upsampler=up --out=out --diagnostics", "--diagnostics is for one model"),
        ("--base=base --bits_per_dim --workdir=run", "--base has no effect with --bits_per_dim"),
    ],
)
def test_bad_flags_of_an_evaluation_are_a_one_line_error(flags, told):
    with pytest.raises(UsageError, match=told):
        run_command(["evaluate", *flags.split()])


@pytest.mark.slow
def test_noise_is_added_to_small_images_only_if_requested():
    noisy = dict(config().diffusion.to_dict(), low_res_logsnr_min=-2.0)

    def model(seen):
        changed = config()
        changed.model.low_res_noise = True
        changed.diffusion = noisy
        made = upsampler(seen)
        return Model(changed, {}, mesh=mesh(), bind_params=made.bind)

    clean, half = [], []
    model(clean).sample(LABELS, low_res=images(), num_steps=2)
    model(half).sample(LABELS, low_res=images(), low_res_logsnr=0.0, num_steps=2)
    jax.effects_barrier()
    wanted = images() / 127.5 - 1
    np.testing.assert_allclose(clean[0], wanted, atol=1e-3)
    assert 0.3 < np.std(half[0] - np.sqrt(0.5) * wanted) / np.sqrt(0.5) < 1.5
    with pytest.raises(UsageError, match="low_res_logsnr is -3.0; the network was trained with -2 … 20"):
        model([]).sample(LABELS, low_res=images(), low_res_logsnr=-3.0)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: upsampler().sample(LABELS), r"low_res is not given; the model is an upsampler"),
        (lambda: base().sample(LABELS, low_res=images()), "low_res is given; the model is not an upsampler"),
        (lambda: upsampler().sample(LABELS, low_res=images(5)), "low_res has 5 images for 6 labels"),
        (lambda: upsampler().sample(LABELS, low_res=doubled(images())), r"asks for \('N', 4, 4, 1\)"),
        (lambda: upsampler().sample(LABELS, low_res=images(), low_res_logsnr=0.0), "was not trained with noise"),
        (lambda: Cascade(base(), base()), "the upsampler's network takes no low-resolution image"),
        (lambda: Cascade(upsampler(), upsampler()), "the base model is an upsampler itself"),
        (
            lambda: Cascade(base(**{"data.image_shape": (8, 8, 1)}), upsampler()),
            r"draws images \(8, 8, 1\), .* \(4, 4, 1\)",
        ),
        (lambda: Cascade(base(**{"data.num_classes": 3}), upsampler()), "the base has 3 classes, the upsampler 10"),
    ],
)
def test_bad_input_is_a_one_line_error(call, told):
    with pytest.raises(UsageError, match=told):
        call()
