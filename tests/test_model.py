import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import digits_config, mixture_config, predictor, settings

import cfgjax
from cfgjax.base.errors import UsageError
from cfgjax.data.sources.registry import toy_mixture
from cfgjax.diffusion.guidance import conditional
from cfgjax.diffusion.process import diffuse
from cfgjax.diffusion.samplers import ddim, initial_noise
from cfgjax.distributed.sharding import make_mesh
from cfgjax.models.model import Model
from cfgjax.models.network import bind, init_params, make_network
from cfgjax.models.sample_figures import exact_model, picture_columns, sample_figure

# samples are compared up to rounding, which grows more in other programs
pytestmark = [pytest.mark.slow, pytest.mark.optimised]


def stirred(params, seed=0):
    """params with noise, so that zero-initialised layers matter."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten([p + 0.05 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)])


@pytest.fixture(scope="module")
def params():
    config = digits_config()
    net = make_network(settings(config))
    return stirred(jax.jit(lambda key: init_params(net, key, (8, 8, 1)))(jax.random.key(0)))


@pytest.fixture(scope="module")
def model(params):
    return Model(digits_config(), params, mesh=make_mesh(devices=jax.devices()[:1]))


LABELS = np.arange(64) % 10


@pytest.fixture(scope="module")
def sixty_four(model):
    return model.sample(LABELS, 1.5, num_steps=6, seed=3)


def test_samples_are_uint8_images_of_the_data_shape(sixty_four):
    assert sixty_four.shape == (64, 8, 8, 1)
    assert sixty_four.dtype == np.uint8
    assert sixty_four.std() > 5


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_sample_i_is_the_same_for_any_batch_size_and_number_of_devices(model, params, devices, batch_size):
    other = Model(digits_config(), params, mesh=make_mesh(devices=jax.devices()[:devices]))
    whole = model.sample_float(LABELS, 1.5, num_steps=6, seed=3)
    some = other.sample_float(LABELS[:9], 1.5, num_steps=6, seed=3, batch_size=batch_size)
    assert np.abs(some - whole[:9]).max() < 1e-4


def test_samples_do_not_depend_on_splitting_the_parameters(model, params):
    mesh = make_mesh(data=2, fsdp=4)
    split = Model(digits_config(), None, mesh=mesh)
    split.put(jax.device_get(params))
    sizes = [(leaf.size, leaf.addressable_shards[0].data.size) for leaf in jax.tree.leaves(split.params)]
    assert any(part == size // 4 for size, part in sizes)
    found = split.sample_float(LABELS[:8], 1.5, num_steps=6, seed=3)
    whole = model.sample_float(LABELS[:8], 1.5, num_steps=6, seed=3)
    assert np.abs(found - whole).max() < 1e-4


def test_only_shape_steps_and_sampler_cause_a_compilation(params):
    traces = []
    net, levels = make_network(settings(digits_config())), settings(digits_config()).diffusion.levels
    bound = lambda params: traces.append(1) or bind(net, params, levels=levels)
    model = Model(digits_config(), params, bind_params=bound)
    ancestral = dict(num_steps=4, sampler="ancestral(v=0.3)")
    model.sample(LABELS[:8], 1.0, **ancestral)
    before = len(traces)
    model.sample(LABELS[8:16], 2.0, **ancestral, seed=9)
    model.sample(LABELS[:8], [0, 1, 2, -1] * 2, num_steps=4, sampler="ancestral(v=0.7)")
    model.sample(LABELS[:8], scale=3.0, **ancestral)
    assert len(traces) == before
    model.sample(LABELS[:8], 2.0, num_steps=5, sampler="ancestral(v=0.3)")
    model.sample(LABELS[:8], 2.0, num_steps=4, sampler=ddim(0.3))
    assert len(traces) > before
    before = len(traces)
    model.sample(LABELS[:8], 1.0, num_steps=4, sampler="ddim(eta=0.5)")
    model.sample(LABELS[:8], 1.0, num_steps=4, sampler=ddim(1), rule="cfg()")
    assert len(traces) == before


def test_predictions_are_pairs_that_add_up_to_z(model):
    z = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    found = model.predict(z, 0.5, [1, 2, model.num_classes])
    np.testing.assert_allclose(diffuse(found.x, found.eps, 0.5), z, atol=1e-5)
    np.testing.assert_array_equal(found.eps, model.eps(z, 0.5, [1, 2, model.num_classes]))


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_predictions_are_the_same_on_any_number_of_devices(model, params, rows):
    other = Model(digits_config(), params, mesh=make_mesh(devices=jax.devices()[:4]))
    z = jax.random.normal(jax.random.key(0), (rows, 8, 8, 1))
    found = other.predict(z, 0.5, LABELS[:rows])
    assert found.eps.sharding.device_set == set(jax.devices()[:4])
    np.testing.assert_allclose(found.eps, model.predict(z, 0.5, LABELS[:rows]).eps, atol=1e-5)


@pytest.mark.parametrize("batch_size", [2, 5])
def test_a_trajectory_has_all_levels_and_samples(model, batch_size):
    options = dict(num_steps=4, seed=3, sampler="ddim()")
    images, seen = model.sample(LABELS[:5], 1.5, return_trajectory=True, batch_size=batch_size, **options)
    np.testing.assert_array_equal(images, model.sample(LABELS[:5], 1.5, **options))
    np.testing.assert_allclose(seen.logsnr, model.grid(4))
    assert seen.z.shape == seen.x.shape == (4, 5, 8, 8, 1)
    np.testing.assert_allclose(seen.x[-1], model.sample_float(LABELS[:5], 1.5, **options), atol=1e-6)
    alone = model.sample(LABELS[:5], 1.5, return_trajectory=True, **options)[1]
    np.testing.assert_allclose(seen.z, alone.z, atol=1e-4)


def strongest(predict, cond, null, w):
    """A user's rule, a plain function."""
    return lambda z, logsnr: predict(z, jnp.broadcast_to(logsnr, z.shape[:1]), cond)


def test_a_custom_rule_needs_no_registration(model):
    found = model.sample_float(LABELS[:3], 2.0, num_steps=4, rule=strongest)
    np.testing.assert_allclose(found, model.sample_float(LABELS[:3], num_steps=4), atol=1e-6)
    np.testing.assert_allclose(found, model.sample_float(LABELS[:3], 2.0, num_steps=4, rule=conditional()), atol=1e-6)


def test_at_weight_zero_the_null_branch_is_not_computed(params):
    rows = []
    net, levels = make_network(settings(digits_config())), settings(digits_config()).diffusion.levels

    def counting(params):
        predict = bind(net, params, levels=levels)
        return lambda z, logsnr, cond: rows.append(len(z)) or predict(z, logsnr, cond)

    model = Model(digits_config(), params, mesh=make_mesh(devices=jax.devices()[:1]), bind_params=counting)
    model.sample(LABELS[:3], 0.0, num_steps=2)
    assert set(rows) == {3}
    model.sample(LABELS[:3], [0.0, 0.0, 1.0], num_steps=2)
    assert set(rows) == {3, 6}


def test_a_scale_equals_the_weight_plus_one(model):
    assert np.array_equal(model.sample([1, 2], 0.5, num_steps=4), model.sample([1, 2], scale=1.5, num_steps=4))


def test_a_weight_per_label_equals_separate_calls(model):
    mixed = model.sample([1, 1, 1], [-1.0, 0.0, 2.0], num_steps=4, seed=5)
    for i, w in enumerate([-1.0, 0.0, 2.0]):
        assert np.array_equal(mixed[i], model.sample([1, 1, 1], w, num_steps=4, seed=5)[i])


def test_at_w_minus_one_the_label_does_not_matter(model):
    assert np.array_equal(model.sample([1, 2], -1.0, num_steps=4), model.sample([7, 8], -1.0, num_steps=4))
    assert not np.array_equal(model.sample([1, 2], 0.0, num_steps=4), model.sample([7, 8], 0.0, num_steps=4))


def test_at_w_zero_the_null_row_does_not_matter(model, params):
    other = Model(
        model.settings, {**params, "label": params["label"].at[-1].add(1.0)}, mesh=make_mesh(devices=jax.devices()[:1])
    )
    assert np.array_equal(model.sample_float([1, 2], 0.0, num_steps=4), other.sample_float([1, 2], 0.0, num_steps=4))
    assert not np.array_equal(model.sample([1, 2], 1.0, num_steps=4), other.sample([1, 2], 1.0, num_steps=4))


def test_eps_takes_scalars_and_arrays_and_the_null_label(model):
    z = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    one = model.eps(z, 0.5, 4)
    assert one.shape == z.shape
    assert np.allclose(one, model.eps(z, jnp.full(3, 0.5), [4, 4, 4]), atol=1e-6)
    assert np.abs(one - model.eps(z, 0.5, model.num_classes)).max() > 1e-3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"labels": [0, 10]}, "label 1 is 10; need 0 … 9"),
        ({"labels": [0.5]}, "label has dtype float64"),
        ({"labels": []}, r"label has shape \(0,\): there are none"),
        ({"labels": [1, 2], "guidance": [1.0, 2.0, 3.0]}, r"guidance has shape \(3,\) for 2 labels"),
        ({"labels": [1], "guidance": 1.0, "scale": 2.0}, "are both given; give one"),
        ({"labels": [1], "guidance": "strong"}, "need a number or one per label"),
        ({"labels": [1], "guidance": float("nan")}, "guidance is nan; need numbers that are finite"),
        ({"labels": [1], "sampler": "dim"}, "unknown sampler 'dim', did you mean 'ddim'"),
        ({"labels": [1], "sampler": "ddim(v=0.3)"}, "ddim takes no 'v', did you mean|ddim takes no 'v'; known: eta"),
        ({"labels": [1], "sampler": "ancestral(v=1.3)"}, "v is 1.3"),
        ({"labels": [1], "batch_size": -5}, "batch_size is -5; need an integer of at least 1"),
        ({"labels": [1], "num_steps": 0}, "num_steps is 0; need an integer of at least 2"),
        ({"labels": [1], "seed": 2**64}, "seed is 18446744073709551616; need an integer"),
        ({"labels": [1], "num_steps": 1}, "num_steps is 1"),
        (
            {"labels": [1], "num_steps": 10**9},
            "num_steps is 1000000000; need an integer of at least 2 and at most 1000000",
        ),
        ({"labels": None}, "label has dtype object"),
        ({"labels": [True, False]}, "label has dtype bool"),
        ({"labels": [[1], [2, 3]]}, "lists of different lengths"),
        ({"labels": [[1, 2]]}, r"label has dtype int64 and shape \(1, 2\)"),
        ({"labels": ["one"]}, "label 'one' is not a number, and the run recorded no class names"),
        ({"labels": [-1]}, "label 0 is -1"),
        ({"labels": [2**70]}, "label has dtype object"),
        ({"labels": [1], "guidance": "1.5"}, "guidance is '1.5'; need a number"),
        ({"labels": [1], "guidance": True}, "guidance is True; need a number"),
        ({"labels": [1], "guidance": 1j}, "need a number"),
        ({"labels": [1, 2], "guidance": [1.0, None]}, "need a number"),
        ({"labels": [1, 2], "guidance": [[1.0], [2.0, 3.0]]}, "need a number"),
        ({"labels": [1], "guidance": 1e39}, "guidance is 1e[+]39; need numbers that are finite in float32"),
        ({"labels": [1], "guidance": 10**400}, "need a number"),
        ({"labels": [1], "scale": float("inf")}, "scale is inf; need numbers that are finite in float32"),
        ({"labels": [1], "seed": True}, "seed is True"),
        ({"labels": [1], "seed": 1.0}, "seed is 1.0"),
        ({"labels": [1], "seed": -1}, "seed is -1"),
        ({"labels": [1], "sampler": "ancestral(v='high')"}, "v is 'high'"),
        ({"labels": [1], "sampler": "ancestral()"}, "needs a network with a learned variance"),
        ({"labels": [1], "rule": "cgf()"}, "unknown rule 'cgf', did you mean 'cfg'"),
        ({"labels": [1], "rule": "classifier()"}, r"rule classifier\(\) has no guide"),
        ({"labels": [1], "sampler": ["ddim"]}, r"sampler is \['ddim'\]"),
        ({"labels": [1], "rule": 1.5}, "rule is 1.5"),
        ({"labels": [1], "num_steps": 4.5}, "num_steps is 4.5"),
        ({"labels": [1], "num_steps": [4]}, r"num_steps is \[4\]"),
        ({"labels": [1], "low_res": np.zeros((1, 4, 4, 1), np.uint8)}, "low_res is given"),
    ],
)
def test_arguments_that_do_not_fit_are_reported_in_one_line(model, arguments, told):
    with pytest.raises(UsageError, match=rf"\A[^\n]*{told}[^\n]*\Z"):
        model.sample(**arguments)


SHORT = {"labels": [3, 7, 5], "num_steps": 3}


@pytest.mark.parametrize("options", [{}, {"sampler": "ddim"}], ids=str)
def test_weights_with_a_nan_are_refused_before_drawing(model, params, options):
    broken = Model(model.settings, {**params, "label": params["label"].at[7, 0].set(jnp.nan)}, mesh=model.mesh)
    broken.put(jax.device_get(broken.params))
    with pytest.raises(ArithmeticError, match=r"\Asample 1 at w = 0 has a value that is not finite; its label is 7\Z"):
        broken.sample(**SHORT, **options)


@pytest.mark.parametrize("sampler", ["ancestral(v=0.3)", "ddim"])
def test_a_weight_so_large_that_a_sample_overflows_is_an_error(model, sampler):
    with pytest.raises(ArithmeticError, match=r"sample 2 at w = 3e\+38 has a value that is not finite; its label is 5"):
        model.sample(**SHORT, guidance=[0.0, 1.0, 3e38], sampler=sampler)


def test_an_overflow_in_the_last_step_does_not_become_a_white_pixel():
    eps = predictor(lambda z, logsnr, label: jnp.where((logsnr > 12)[:, None, None, None], jnp.inf, z))
    model = Model(digits_config(), {}, mesh=make_mesh(devices=jax.devices()[:1]), bind_params=lambda params: eps)
    with pytest.raises(ArithmeticError, match="sample 0 at w = 0"):
        model.sample([1], num_steps=3)


def test_the_exact_model_draws_the_mixture():
    config = mixture_config(**{"data.means": ((0.0, 2.0), (2.0, 0.0), (-2.0, -2.0)), "sample.num_steps": 128})
    labels = np.repeat([0, 1, 2], 400)
    points = exact_model(Model(config, {})).sample(labels, seed=1)
    mixture = toy_mixture(config.data.means, config.data.stds, config.data.weights)
    for k in range(3):
        assert np.allclose(points[labels == k].mean(axis=0), mixture.means[k], atol=0.1)
        assert np.allclose(points[labels == k].std(axis=0), mixture.stds[k], rtol=0.15)


def test_a_trained_run_can_be_loaded_and_sampled_with_each_of_its_averages(tmp_path):
    config = digits_config(**{"ema.rates": (0.05, 0.9)})
    assert cfgjax.train(config, tmp_path).metrics["step"] == 4
    first, second, raw = (cfgjax.load(tmp_path, ema=rate) for rate in (None, 0.9, 0))
    assert first.step == 4
    assert first.image_shape == (8, 8, 1)
    assert first.num_classes == 10
    kernels = [m.params["out_conv"]["kernel"] for m in (first, second, raw)]
    assert not np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[1], kernels[2])
    assert cfgjax.load(tmp_path, step=2).step == 2
    columns = picture_columns(first, guidance=(0.0, 1.0), num_steps=3)
    picture = sample_figure(first, columns, labels=[3, 4], per_cell=2)
    assert picture.width > 2 * 2 * 32
    assert picture.height > 2 * 32
    with pytest.raises(UsageError, match=r"ema 0.7 is neither a rate of the run \(0.05, 0.9, 0\)"):
        cfgjax.load(tmp_path, ema=0.7)


@pytest.mark.parametrize("devices", [1, 8])
def test_given_noise_is_where_the_sampler_begins(params, devices):
    made = Model(digits_config(), params, mesh=make_mesh(devices=jax.devices()[:devices]))
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(5)))(np.arange(7))
    options = {"sampler": "ddim()", "num_steps": 4}
    own = np.asarray(initial_noise(keys, made.image_shape))
    expected = made.sample_float(np.arange(7), 1.0, seed=5, **options)
    for batch_size in (None, 3):
        found = made.sample_float(np.arange(7), 1.0, z=own, batch_size=batch_size, **options)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(made.sample_float(np.arange(7), 1.0, z=own[::-1], **options) - expected).max() > 0.01


@pytest.mark.parametrize(("z", "told"), [(np.zeros((2, 3)), "need numbers of shape"), (np.inf, "not finite")], ids=str)
def test_noise_that_does_not_fit_is_reported(model, z, told):
    z = np.full((2, *model.image_shape), z) if np.ndim(z) == 0 else z
    with pytest.raises(UsageError, match=f"z has .*{told}"):
        model.sample([0, 1], z=z)
