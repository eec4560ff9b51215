"""Laws of the perceptron for toy data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.nets.mlp import MLP

NET = MLP(out_channels=3, num_classes=4, width=16, depth=2)
Z = jax.random.normal(jax.random.key(1), (6, 3))
TIME = jnp.linspace(0.0, 1000.0, 6)


@pytest.fixture(scope="module")
def params():
    """Parameters away from initialisation, where the output is zero."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(NET.init, jax.random.key(0), Z, TIME, jnp.zeros(6, int))["params"]
    return jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), jnp.float32), shapes)


def apply(params, z=Z, time=TIME, label=0):
    return NET.apply({"params": params}, z, time, jnp.full(len(z), label))


def test_a_new_network_returns_zero():
    fresh = NET.init(jax.random.key(0), Z, TIME, jnp.zeros(6, int))["params"]
    np.testing.assert_array_equal(apply(fresh), np.zeros((6, 3)))
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}


def test_time_and_every_label_matter_to_each_sample(params):
    by_label = jnp.stack([apply(params, label=k) for k in range(5)])
    assert by_label.dtype == jnp.float32
    assert len(np.unique(by_label[:, 0, 0])) == 5
    assert np.all(np.any(apply(params) != apply(params, time=TIME + 1), axis=-1))


def test_the_null_label_is_the_last_row_of_the_embedding(params):
    changed = params | {"label": params["label"].at[4].add(1.0)}
    assert np.any(apply(changed, label=4) != apply(params, label=4))
    for k in range(4):
        np.testing.assert_array_equal(apply(changed, label=k), apply(params, label=k))


def test_samples_do_not_depend_on_each_other(params):
    np.testing.assert_allclose(apply(params)[2:4], apply(params, Z[2:4], TIME[2:4]), rtol=1e-4, atol=1e-4)
