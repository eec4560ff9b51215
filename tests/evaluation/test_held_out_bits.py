"""Laws of the held-out bound of a model."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import digits_config, mixture_config, predictor

from cfgjax.base.errors import UsageError
from cfgjax.cli.evaluate_bits import with_chain
from cfgjax.data.dataset import Stored
from cfgjax.diffusion.samplers import ancestral
from cfgjax.distributed.sharding import make_mesh
from cfgjax.evaluation.held_out_bits import check_guidance, held_out_bits
from cfgjax.models.model import Model
from cfgjax.runs.sample_options import SampleOptions

SHAPE = (4, 4, 1)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (11, *SHAPE), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 11)
OPTIONS = dict(num_steps=8, v=0.3)


def slope(params):
    """ε = slope z plus a tenth of the label: enough of a network to tell images, labels and parameters apart."""
    return predictor(lambda z, logsnr, label: params["slope"] * z + 0.1 * label[:, None, None, None])


def slope_and_variance(params):
    """`slope` with a learned variance, the fraction 0.3 everywhere."""
    return lambda z, logsnr, cond: slope(params)(z, logsnr, cond)._replace(variance=jnp.full_like(z, 0.3))


def make_model(bind_params=slope, *, devices=1):
    mesh = make_mesh(devices=jax.devices()[:devices])
    config = digits_config(**{"data.image_shape": SHAPE, "diffusion.logsnr_max": 12.0})
    config.diffusion.learned_variance = bind_params is slope_and_variance
    return Model(config, {"slope": jnp.float32(0.9)}, mesh=mesh, bind_params=bind_params)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def whole(model):
    return held_out_bits(model, IMAGES, LABELS, **OPTIONS)


def same(a, b):
    """Whether two results agree up to float rounding."""
    equal = lambda x, y: x == y if isinstance(x, str) else np.allclose(x, y, rtol=1e-5, atol=1e-9)
    assert jax.tree.all(jax.tree.map(equal, a, b))


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "batch_size"), [(1, 1), (1, 4), (8, 3)])
def test_the_mean_is_the_same_for_any_batch_size_and_number_of_devices(whole, devices, batch_size):
    same(held_out_bits(make_model(devices=devices), IMAGES, LABELS, **OPTIONS, batch_size=batch_size), whole)


def test_stored_images_have_the_bits_of_those_in_memory(model, whole):
    stored = Stored(lambda index: IMAGES[index], IMAGES.shape, "digest")
    same(held_out_bits(model, stored, LABELS, **OPTIONS), whole)


@pytest.mark.slow
def test_the_mean_and_its_error_follow_from_the_single_images(model):
    # image i keeps its noise as long as it keeps its place: the first n images are a prefix
    first = [held_out_bits(model, IMAGES[:n], LABELS[:n], **OPTIONS) for n in (1, 2, 3)]
    sums = [0, *(n * result["bits_per_dim"] for n, result in enumerate(first, 1))]
    error = np.std(np.diff(sums), ddof=1) / math.sqrt(3)
    assert error > 0
    np.testing.assert_allclose(first[-1]["standard_error"], error, rtol=1e-3)


def test_the_parts_sum_to_the_bound(whole):
    assert len(whole["terms"]) == len(whole["logsnr"]) == whole["num_steps"] == 8
    assert (whole["num_examples"], whole["v"], whole["learned_variance"]) == (11, 0.3, False)
    np.testing.assert_allclose(whole["prior"] + whole["transitions"] + whole["decoder"], whole["bits_per_dim"])
    np.testing.assert_allclose(whole["prior"] + sum(whole["terms"]), whole["bits_per_dim"])
    assert whole == json.loads(json.dumps(whole))
    assert whole["logsnr"][0] == -20 and whole["logsnr"][-1] == 12


def test_all_batches_share_one_compilation():
    def count(batch_size):
        traces = []
        bind_params = lambda params: lambda *inputs: traces.append(0) or slope(params)(*inputs)
        held_out_bits(make_model(bind_params), IMAGES, LABELS, **OPTIONS, batch_size=batch_size)
        return len(traces)

    assert count(2) == count(11)


def test_one_image_has_no_standard_error(model):
    one = held_out_bits(model, IMAGES[:1], LABELS[:1], **OPTIONS)
    assert one["standard_error"] is None and math.isfinite(one["bits_per_dim"])


def test_a_learned_variance_replaces_v(whole):
    learned = held_out_bits(make_model(slope_and_variance), IMAGES, LABELS, num_steps=8, v=1.0)
    assert learned["learned_variance"] and learned["v"] is None
    same(learned["terms"], whole["terms"])


def test_the_bound_depends_on_labels_seed_v_and_the_last_level(model, whole):
    others = [
        held_out_bits(model, IMAGES, np.full(11, 10), **OPTIONS),  # label 10 is "none"
        held_out_bits(model, IMAGES, LABELS, **OPTIONS, seed=1),
        held_out_bits(model, IMAGES, LABELS, num_steps=8, v=0.0),
        held_out_bits(model, IMAGES, LABELS, **OPTIONS, logsnr_max=10.0),
    ]
    assert len({result["bits_per_dim"] for result in [whole, *others]}) == 5


def test_float_images_are_rounded_to_eight_bits_first(model, whole):
    shifted = np.clip(IMAGES / 127.5 - 1 + 0.3 / 127.5, -1, 1).astype(np.float32)
    assert held_out_bits(model, shifted, LABELS, **OPTIONS) == whole


def test_a_perfect_model_of_constant_images_needs_zero_bits():
    grey = 51 / 127.5 - 1

    def bind_params(params):
        def eps_fn(z, logsnr, label):
            alpha, sigma = (jnp.sqrt(jax.nn.sigmoid(s * logsnr))[:, None, None, None] for s in (1, -1))
            return (z - alpha * grey) / sigma

        return predictor(eps_fn)

    knowing = make_model(bind_params)
    images = np.full((5, *SHAPE), 51, np.uint8)
    assert held_out_bits(knowing, images, LABELS[:5], num_steps=20, v=0.0)["transitions"] < 1e-6
    other = held_out_bits(knowing, images + 2, LABELS[:5], num_steps=20, v=0.0)
    # two levels off: ½ (e^{λ'} − e^λ) (x − x̃)² summed over the transitions is ½ e^{λmax} (x − x̃)², λmax = 12
    expected = 0.5 * math.exp(12) * (2 / 127.5) ** 2 / math.log(2)
    np.testing.assert_allclose(other["transitions"], expected, rtol=1e-3)


def with_nan(image):
    image = image / np.float32(127.5) - 1
    image[3, 0, 0, 0] = np.nan
    return image


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(image=IMAGES[:0], label=LABELS[:0]), r"image has shape \(0, 4, 4, 1\)"),
        (dict(image=IMAGES[:, :2]), "image has shape"),
        (dict(image=IMAGES.astype(np.float64)), "dtype float64"),
        (dict(image=with_nan(IMAGES)), "image 3 has a value that is not finite"),
        (dict(image=IMAGES.astype(np.float32)), "outside"),
        (dict(label=LABELS[:4]), "differ in number"),
        (dict(label=LABELS + 9), "need 0 … 10"),
        (dict(num_steps=1), "num_steps is 1; need an integer of at least 2"),
        (dict(num_steps=10**9), "num_steps is 1000000000; need an integer of at least 2 and at most 1000000"),
        (dict(batch_size=0), "batch_size is 0"),
        (dict(seed=-1), "seed is -1"),
        (dict(v=1.5), "v is 1.5"),
        (dict(v=math.nan), "v is nan"),
        (dict(logsnr_max=13.0), "trained above -20 and up to 12"),
        (dict(logsnr_max=-20.0), "trained above -20"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_on_one_line(model, arguments, words):
    with pytest.raises(UsageError, match=words) as error:
        held_out_bits(model, **{"image": IMAGES, "label": LABELS, **OPTIONS, **arguments})
    assert "\n" not in str(error.value)


def test_points_have_no_bits_per_dimension():
    model = Model(mixture_config(), {}, mesh=make_mesh(devices=jax.devices()[:1]), bind_params=slope)
    with pytest.raises(UsageError, match="points of shape"):
        held_out_bits(model, np.zeros((3, 2), np.float32), np.zeros(3, int), **OPTIONS)


def test_the_error_for_a_non_finite_bound_names_the_image():
    bind_params = lambda params: predictor(
        lambda z, logsnr, label: jnp.where(label[:, None, None, None] == 7, jnp.nan, z)
    )
    labels = np.array([0, 1, 2, 3, 7, 5])
    with pytest.raises(ArithmeticError, match="image 4 has a bound that is not finite"):
        held_out_bits(make_model(bind_params), IMAGES[:6], labels, **OPTIONS, batch_size=3)


@pytest.mark.parametrize("w", [0, 0.0, [0.0, 0.0], np.zeros(3)])
def test_weight_zero_is_accepted_without_a_null_label(w):
    check_guidance(w)


@pytest.mark.parametrize(("w", "shown"), [(1.5, "1.5"), (-1, "-1"), ([0.0, 0.3], "0, 0.3"), (math.nan, "nan")])
def test_guidance_defines_no_likelihood(w, shown):
    with pytest.raises(UsageError, match=rf"guidance \(w = {shown}\) defines no likelihood"):
        check_guidance(w)


@pytest.mark.parametrize(
    ("sampler", "flags", "expected"),
    [
        ("dpmpp_2m()", {}, (ancestral(v=0.3), 256)),
        ("dpmpp_2m()", {"num_steps": (16,)}, (ancestral(v=0.3), 8)),
        ("ancestral(v=0.2)", {}, (ancestral(v=0.2), 8)),
        ("ancestral(v=0.2)", {"sampler": ("ancestral(v=0.2)",)}, (ancestral(v=0.2), 8)),
    ],
)
def test_the_chain_is_that_of_the_run_or_of_flags_or_the_papers(sampler, flags, expected):
    found = with_chain(SampleOptions(sampler=sampler, num_steps=8), flags, learned_variance=False)
    assert (found.sampler, found.num_steps) == expected


def test_a_flag_with_a_sampler_that_has_no_likelihood_is_refused():
    for sampler, learned, told in [("ddim()", False, "not ddim"), ("ancestral(v=0.3)", True, "variance is learned")]:
        with pytest.raises(UsageError, match=told):
            with_chain(SampleOptions(sampler=sampler), {"sampler": (sampler,)}, learned)
