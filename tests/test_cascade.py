"""Laws of upsampling and of cascades, with a base and an upsampler whose answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import digits_config

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import eps_from_x
from cfgjax.distributed.sharding import make_mesh
from cfgjax.models.cascade import Cascade
from cfgjax.models.model import Model

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
        (lambda: base().sample(LABELS, low_res=images()), "low_res is given; the model is no upsampler"),
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
