"""Laws of ADM's upsamplers: U-Nets that see a smaller image."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.nets.unet import UNet

TINY = dict(out_channels=3, num_classes=4, channels=32, multipliers=(1,), depth=1, attention_resolutions=())
Z = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
TIME = jnp.array([0.0, 10.0, 500.0, 999.5])
LABEL = jnp.array([0, 1, 3, 4])
LOW_RES = jax.random.normal(jax.random.key(5), (4, 4, 4, 3))


def tiny(**changes):
    return UNet(**TINY, head_channels=32, **changes)


def random_variables(net, z=Z, **given):
    """Parameters away from initialisation, where the output is zero."""
    rng = np.random.default_rng(0)
    variables = jax.eval_shape(lambda: net.init(jax.random.key(0), z, TIME, LABEL, **given))
    return jax.tree.map(lambda leaf: jnp.asarray(0.1 * rng.standard_normal(leaf.shape, np.float32)), variables)


@pytest.mark.slow
def test_a_constant_low_resolution_image_is_that_constant_in_three_more_channels():
    plain, net = tiny(), tiny(low_res=True)
    constant = jnp.array([0.3, -0.8, 0.5])
    z = jnp.resize(Z, (4, 4, 12, 3))
    joined = jnp.concatenate([z, jnp.broadcast_to(constant, z.shape)], axis=-1)
    variables = random_variables(plain, joined)
    low_res = jnp.broadcast_to(constant, (4, 2, 3, 3))
    found = jax.jit(lambda low_res: net.apply(variables, z, TIME, LABEL, low_res=low_res))(low_res)
    expected = jax.jit(lambda joined: plain.apply(variables, joined, TIME, LABEL))(joined)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_low_resolution_image_is_resized_linearly_about_the_centres_of_its_pixels():
    net, ramp = tiny(low_res=True), jnp.broadcast_to(jnp.arange(4.0)[:, None, None], (4, 4, 4, 3))

    @jax.jit
    def seen():
        """The input of the first convolution."""
        inputs = []

        def record(method, arguments, options, context):
            if context.module.name == "input_0_0":
                inputs.append(arguments[0])
            return method(*arguments, **options)

        with nn.intercept_methods(record):
            net.init(jax.random.key(0), Z, TIME, LABEL, low_res=ramp)
        return inputs[0]

    np.testing.assert_array_equal(seen()[..., :3], Z)
    expected = np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)
    np.testing.assert_allclose(seen()[0, :, 5, 4], expected, atol=1e-6)


def test_each_sample_depends_on_its_own_low_resolution_image_and_its_noise():
    net = tiny(low_res=True, low_res_noise=True)
    given = dict(low_res=LOW_RES, low_res_time=TIME)
    variables = random_variables(net, **given)
    run = jax.jit(lambda given: net.apply(variables, Z, TIME, LABEL, **given))
    base = run(given)
    for name in given:
        changed = run(given | {name: given[name].at[2].add(1.0)})
        np.testing.assert_allclose(changed[jnp.array([0, 1, 3])], base[jnp.array([0, 1, 3])], atol=1e-5)
        assert np.abs(changed[2] - base[2]).max() > 1e-3


@pytest.mark.parametrize("low_res_noise", [False, True])
@pytest.mark.parametrize("low_res", [False, True])
def test_low_resolution_inputs_are_made_only_if_requested(low_res, low_res_noise):
    net = tiny(low_res=low_res, low_res_noise=low_res_noise)
    for names in ((), ("low_res",), ("low_res_time",), ("low_res", "low_res_time")):
        given = {name: {"low_res": LOW_RES, "low_res_time": TIME}[name] for name in names}
        init = functools.partial(jax.eval_shape, net.init, jax.random.key(0), Z, TIME, LABEL, **given)
        if ("low_res" in names, "low_res_time" in names) == (low_res, low_res_noise):
            init()
            continue
        called = " and ".join(names) or "no low_res"
        message = f"called with {called}; model.low_res is {low_res}, .*noise is {low_res_noise}"
        with pytest.raises(ValueError, match=message):
            init()
