"""Laws of label dropout and of the guided denoiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.diffusion.guidance import classifier_free, drop_labels, scale_to_weight
from cfgjax.diffusion.mixture import GaussianMixture
from cfgjax.diffusion.process import alpha_sigma
from cfgjax.distributed.sharding import batch_sharding, make_mesh

MIXTURE = GaussianMixture(np.array([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]]), np.array([0.4, 0.8, 0.6]), [0.5, 0.3, 0.2])
eps = jax.jit(MIXTURE.eps)
NULL = MIXTURE.num_components
Z = jax.random.normal(jax.random.key(0), (16, 2))
LOGSNR = jnp.linspace(-4.0, 4.0, 16)
LABEL = jnp.arange(16) % NULL


def guided(w, label=LABEL, eps_fn=eps):
    return classifier_free(eps_fn, label, w, NULL)(Z, LOGSNR)


def test_labels_are_dropped_at_the_given_rate():
    n, p_uncond = 40_000, 0.1
    label = np.arange(n) % 5
    dropped = np.asarray(drop_labels(jax.random.key(0), label, p_uncond, 5))
    np.testing.assert_array_equal(dropped[dropped != 5], label[dropped != 5])
    for k in range(5):
        rate = np.mean(dropped[label == k] == 5)
        assert abs(rate - p_uncond) < 5 * np.sqrt(p_uncond * (1 - p_uncond) / (n / 5))


def test_probability_zero_drops_none_and_one_drops_all():
    label = jnp.arange(10_000) % 5
    np.testing.assert_array_equal(drop_labels(jax.random.key(0), label, 0.0, 5), label)
    np.testing.assert_array_equal(drop_labels(jax.random.key(0), label, 1.0, 5), np.full(10_000, 5))


def test_eight_devices_drop_the_labels_that_one_drops():
    label = jnp.arange(64) % 5
    alone = drop_labels(jax.random.key(0), label, 0.5, 5)
    sharding = batch_sharding(make_mesh())
    drop = jax.jit(lambda key, label: drop_labels(key, label, 0.5, 5), out_shardings=sharding)
    spread = drop(jax.random.key(0), jax.device_put(label, sharding))
    assert len(spread.sharding.device_set) == 8
    np.testing.assert_array_equal(spread, alone)


def test_zero_weight_is_the_conditional_model():
    np.testing.assert_array_equal(guided(0.0), eps(Z, LOGSNR, LABEL))


def test_weight_minus_one_is_the_unconditional_model():
    np.testing.assert_array_equal(guided(-1.0), eps(Z, LOGSNR))


@pytest.mark.parametrize("w", [-2.0, -0.5, 1.0, 3.0])
def test_guidance_follows_the_implicit_classifier(w):
    @jax.jit
    @jax.grad
    def score(z):
        log_classifier = MIXTURE.log_posterior(z, LOGSNR)[jnp.arange(16), LABEL]
        return (MIXTURE.log_prob(z, LOGSNR, LABEL) + w * log_classifier).sum()

    _, sigma = alpha_sigma(LOGSNR[:, None])
    np.testing.assert_allclose(guided(w), -sigma * score(Z), rtol=1e-4, atol=1e-5)


def test_a_weight_per_sample_is_each_samples_scalar():
    w = jnp.linspace(-2.0, 5.0, 16)
    each = jnp.stack([guided(weight)[i] for i, weight in enumerate(w)])
    np.testing.assert_array_equal(guided(w), each)


def test_a_scalar_label_stands_for_the_whole_batch():
    np.testing.assert_array_equal(guided(2.0, label=1), guided(2.0, label=jnp.full(16, 1)))


def test_one_call_has_the_branches_of_a_sample_side_by_side():
    calls = []
    guided(2.0, eps_fn=lambda *arguments: calls.append(arguments) or jnp.zeros((32, 2)))
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
        return classifier_free(eps, label, w, NULL)(z, logsnr)

    compiled = jax.jit(denoise, out_shardings=sharding).lower(*arguments).compile()
    collectives = ("all-to-all", "all-gather", "all-reduce", "collective-permute")
    assert not [name for name in collectives if name in compiled.as_text()]
    np.testing.assert_allclose(compiled(*arguments), denoise(Z, LOGSNR, LABEL, arguments[-1]), rtol=1e-5, atol=1e-5)


def test_bfloat16_predictions_are_combined_in_their_dtype():
    low = lambda *arguments: eps(*arguments).astype(jnp.bfloat16)
    for w in (2.0, np.float32(2.0), jnp.full(16, 2.0)):
        assert guided(w, eps_fn=low).dtype == jnp.bfloat16


def test_every_weight_shares_one_compilation():
    traces = []

    def eps_fn(*arguments):
        traces.append(None)
        return eps(*arguments)

    jitted = jax.jit(lambda w: guided(w, eps_fn=eps_fn))
    for w in (0.0, 1.0, -1.0, 7.5):
        np.testing.assert_allclose(jitted(w), guided(w), rtol=1e-5, atol=1e-5)
    assert len(traces) == 1


def test_scale_one_is_the_conditional_model():
    assert scale_to_weight(1.0) == 0.0
    conditional, unconditional = eps(Z, LOGSNR, LABEL), eps(Z, LOGSNR)
    from_scale = unconditional + 4.0 * (conditional - unconditional)
    np.testing.assert_allclose(guided(scale_to_weight(4.0)), from_scale, rtol=1e-4, atol=1e-5)
