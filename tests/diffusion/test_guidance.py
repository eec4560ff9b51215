"""Laws of label dropout and of the guided denoiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.diffusion.guidance import Denoiser, branches, cfg, conditional, drop_condition, scale_to_weight, with_memory
from cfgjax.diffusion.mixture import GaussianMixture
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import alpha_sigma, diffuse
from cfgjax.distributed.sharding import batch_sharding, make_mesh

MIXTURE = GaussianMixture(np.array([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]]), np.array([0.4, 0.8, 0.6]), [0.5, 0.3, 0.2])
predict = jax.jit(MIXTURE.predict)
NULL = MIXTURE.num_components
Z = jax.random.normal(jax.random.key(0), (16, 2))
LOGSNR = jnp.linspace(-4.0, 4.0, 16)
LABEL = jnp.arange(16) % NULL


def guided(w, cond=LABEL, predict=predict):
    return cfg()(predict, cond, jnp.full_like(LABEL, NULL), w)(Z, LOGSNR)


def drop(key, label, p_uncond):
    return drop_condition(key, label, jnp.full(len(label), 5), p_uncond)


def test_labels_are_dropped_at_the_given_rate():
    n, p_uncond = 40_000, 0.1
    label = np.arange(n) % 5
    dropped = np.asarray(drop(jax.random.key(0), jnp.asarray(label), p_uncond))
    np.testing.assert_array_equal(dropped[dropped != 5], label[dropped != 5])
    for k in range(5):
        rate = np.mean(dropped[label == k] == 5)
        assert abs(rate - p_uncond) < 5 * np.sqrt(p_uncond * (1 - p_uncond) / (n / 5))


def test_probability_zero_drops_no_label_and_one_drops_all():
    label = jnp.arange(10_000) % 5
    np.testing.assert_array_equal(drop(jax.random.key(0), label, 0.0), label)
    np.testing.assert_array_equal(drop(jax.random.key(0), label, 1.0), np.full(10_000, 5))


def test_eight_devices_drop_the_same_labels_as_one():
    label = jnp.arange(64) % 5
    alone = drop(jax.random.key(0), label, 0.5)
    sharding = batch_sharding(make_mesh())
    spread = jax.jit(lambda key, label: drop(key, label, 0.5), out_shardings=sharding)(
        jax.random.key(0), jax.device_put(label, sharding)
    )
    assert len(spread.sharding.device_set) == 8
    np.testing.assert_array_equal(spread, alone)


def test_zero_weight_is_the_conditional_model():
    jax.tree.map(np.testing.assert_array_equal, guided(0.0), predict(Z, LOGSNR, LABEL))


def test_weight_minus_one_is_the_unconditional_model():
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)  # without a label: another program
    jax.tree.map(close, guided(-1.0), predict(Z, LOGSNR))


@pytest.mark.parametrize("w", [-2.0, -0.5, 1.0, 3.0])
def test_guidance_follows_the_implicit_classifier(w):
    @jax.jit
    @jax.grad
    def score(z):
        log_classifier = MIXTURE.log_posterior(z, LOGSNR)[jnp.arange(16), LABEL]
        return (MIXTURE.log_prob(z, LOGSNR, LABEL) + w * log_classifier).sum()

    _, sigma = alpha_sigma(LOGSNR[:, None])
    np.testing.assert_allclose(guided(w).eps, -sigma * score(Z), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("w", [-2.0, -0.5, 1.0, 3.0])
def test_the_guided_pair_adds_up_to_z(w):
    found = guided(w)
    np.testing.assert_allclose(diffuse(found.x, found.eps, LOGSNR), Z, rtol=1e-4, atol=1e-5)


def test_a_weight_per_sample_equals_scalar_weights():
    w = jnp.linspace(-2.0, 5.0, 16)
    each = jnp.stack([guided(weight).eps[i] for i, weight in enumerate(w)])
    np.testing.assert_array_equal(guided(w).eps, each)


def test_one_call_has_the_branches_of_a_sample_next_to_each_other():
    calls = []
    guided(
        2.0, predict=lambda *arguments: calls.append(arguments) or Prediction(jnp.zeros((32, 2)), jnp.zeros((32, 2)))
    )
    ((z, logsnr, label),) = calls
    assert (z.shape, logsnr.shape, label.shape) == ((32, 2), (32,), (32,))
    for branch, expected in ((0, LABEL), (1, jnp.full(16, NULL))):
        np.testing.assert_array_equal(z[branch::2], Z)
        np.testing.assert_array_equal(logsnr[branch::2], LOGSNR)
        np.testing.assert_array_equal(label[branch::2], expected)


def test_a_sharded_batch_is_guided_without_communication():
    sharding = batch_sharding(make_mesh())
    arguments = [jax.device_put(a, sharding) for a in (Z, LOGSNR, LABEL, jnp.linspace(0.0, 4.0, 16))]

    def denoise(z, logsnr, label, w):
        return cfg()(predict, label, jnp.full_like(label, NULL), w)(z, logsnr).eps

    compiled = jax.jit(denoise, out_shardings=sharding).lower(*arguments).compile()
    collectives = ("all-to-all", "all-gather", "all-reduce", "collective-permute")
    assert not [name for name in collectives if name in compiled.as_text()]
    np.testing.assert_allclose(compiled(*arguments), denoise(Z, LOGSNR, LABEL, arguments[-1]), rtol=1e-5, atol=1e-5)


def test_bfloat16_predictions_are_combined_in_their_dtype():
    low = lambda *arguments: jax.tree.map(lambda a: a.astype(jnp.bfloat16), predict(*arguments))
    for w in (2.0, np.float32(2.0), jnp.full(16, 2.0)):
        assert guided(w, predict=low).eps.dtype == jnp.bfloat16


def test_every_weight_shares_one_compilation():
    traces = []

    def counted(*arguments):
        traces.append(None)
        return predict(*arguments)

    jitted = jax.jit(lambda w: guided(w, predict=counted).eps)
    for w in (0.0, 1.0, -1.0, 7.5):
        np.testing.assert_allclose(jitted(w), guided(w).eps, rtol=1e-5, atol=1e-5)
    assert len(traces) == 1


def test_scale_one_is_the_conditional_model():
    assert scale_to_weight(1.0) == 0.0
    with_label, without = predict(Z, LOGSNR, LABEL).eps, predict(Z, LOGSNR).eps
    from_scale = without + 4.0 * (with_label - without)
    np.testing.assert_allclose(guided(scale_to_weight(4.0)).eps, from_scale, rtol=1e-4, atol=1e-5)


def tree_predict(z, logsnr, cond):
    """A predictor conditioned on a tree: a label and a vector for each sample."""
    found = MIXTURE.predict(z, logsnr, cond["label"])
    return found._replace(eps=found.eps + cond["nested"][0], x=found.x)


@pytest.mark.slow
def test_a_condition_is_any_tree():
    vector = jax.random.normal(jax.random.key(1), (16, 2))
    cond = {"label": LABEL, "nested": (vector,)}
    null = {"label": jnp.full(16, NULL), "nested": (vector,)}
    found = cfg()(tree_predict, cond, null, 2.0)(Z, LOGSNR)
    np.testing.assert_allclose(found.eps, guided(2.0).eps + vector, rtol=1e-5, atol=1e-5)
    one, two, three = branches(tree_predict, Z, LOGSNR, (cond, null, cond))
    jax.tree.map(np.testing.assert_array_equal, one, three)
    np.testing.assert_allclose(two.eps, predict(Z, LOGSNR).eps + vector, rtol=1e-5, atol=1e-5)


def test_all_leaves_of_an_example_are_dropped_together_and_shared_leaves_stay():
    n = 1000
    cond = {"label": jnp.arange(n), "text": jnp.ones((n, 3, 2)), "low_res": jnp.ones((n, 4))}
    null = {"label": jnp.full(n, -1), "text": jnp.zeros((n, 3, 2)), "low_res": cond["low_res"]}
    found = drop_condition(jax.random.key(0), cond, null, 0.4)
    dropped = np.asarray(found["label"]) == -1
    assert 300 < dropped.sum() < 500
    np.testing.assert_array_equal(found["text"], np.where(dropped[:, None, None], 0, 1) * np.ones((n, 3, 2)))
    assert found["low_res"] is cond["low_res"]


def test_without_a_weight_only_the_conditional_branch_is_computed():
    assert cfg().at_zero == conditional() and not conditional().uses_null
    calls = []
    count = lambda z, *rest: calls.append(len(z)) or predict(z, *rest)
    found = cfg().at_zero(count, LABEL, None, 0.0)(Z, 0.5)
    assert calls == [16]
    jax.tree.map(np.testing.assert_array_equal, found, predict(Z, jnp.full(16, 0.5), LABEL))


def test_every_denoiser_can_be_called_with_a_memory():
    plain = with_memory(lambda z, logsnr: Prediction(z, z))
    assert plain(Z, LOGSNR, plain.init(Z))[1] == ()
    counting = Denoiser(lambda z, logsnr, n: (Prediction(z, z), n + 1), lambda z: 0, shift=len)
    same = with_memory(counting)
    assert (same.init(Z), same(Z, LOGSNR, 4)[1], same.shift) == (0, 5, len)
