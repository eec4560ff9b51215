"""Laws of classifier guidance, on Gaussian mixtures with their exact classifier."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.diffusion.guidance import (
    classifier_free,
    classifier_guided,
    classifier_score,
    classifier_shift,
    conditional,
    scale_to_weight,
)
from cfgjax.diffusion.mixture import GaussianMixture
from cfgjax.diffusion.process import alpha_sigma, broadcast_left
from cfgjax.diffusion.samplers import SAMPLERS, initial_noise
from cfgjax.diffusion.schedules import logsnr_grid

pytestmark = pytest.mark.slow

MIXTURE = GaussianMixture(np.array([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]]), np.array([0.4, 0.8, 0.6]), [0.5, 0.3, 0.2])
NULL = MIXTURE.num_components
Z = jax.random.normal(jax.random.key(0), (8, 2))
LOGSNR, LABEL, SCALES = jnp.linspace(-4.0, 4.0, 8), jnp.arange(8) % NULL, jnp.linspace(-1.0, 6.0, 8)
eps = jax.jit(MIXTURE.eps)
score_at = jax.jit(lambda z, logsnr, label: classifier_score(MIXTURE.log_posterior, label)(z, logsnr))
score_of = lambda label: lambda z, logsnr: score_at(z, logsnr, label)
guided_eps = jax.jit(lambda s: classifier_guided(MIXTURE.eps, score_of(LABEL), s)(Z, LOGSNR))
free_eps = jax.jit(lambda w: classifier_free(MIXTURE.eps, LABEL, w, NULL)(Z, LOGSNR))
FORMS = {
    "eps": lambda denoise, score, s: (classifier_guided(denoise, score, s), {}),
    "mean, at z": lambda denoise, score, s: (denoise, {"shift": classifier_shift(score, s)}),
    "mean, at mean": lambda denoise, score, s: (denoise, {"shift": classifier_shift(score, s, at="mean")}),
}
SETTINGS = [("ddim", "eps"), *(("ancestral", form) for form in FORMS)]
every_form = pytest.mark.parametrize(("name", "form"), SETTINGS)


@functools.partial(jax.jit, static_argnames=("name", "form", "mixture", "logits_fn", "n", "num_steps"))
def sample(name, form, s, *, mixture, logits_fn, n, num_steps, bound=20.0):
    """n samples of the mixture guided to the classifier's class 1."""
    keys = jax.random.split(jax.random.key(0), n)
    denoise, options = FORMS[form](mixture.eps, classifier_score(logits_fn, 1), s)
    options |= {"v": 0.3} if name == "ancestral" else {}
    logsnrs = logsnr_grid(num_steps, "cosine", -bound, bound)
    return SAMPLERS[name](keys, denoise, initial_noise(keys, mixture.means.shape[1:]), logsnrs, clip=False, **options)


# Classifier guidance is classifier-free guidance


@pytest.mark.parametrize("s", [-2.0, 0.5, 1.0, 4.0, SCALES], ids=str)
def test_scale_s_on_the_unconditional_model_is_classifier_free_guidance_at_w_s_minus_one(s):
    np.testing.assert_allclose(guided_eps(s), free_eps(scale_to_weight(s)), atol=3e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_whole_runs_of_the_two_kinds_of_guidance_are_the_same(name):
    keys, options = jax.random.split(jax.random.key(0), 8), {"v": 0.3} if name == "ancestral" else {}
    z, logsnrs = initial_noise(keys, (2,)), logsnr_grid(16, "cosine", -10.0, 10.0)
    run = jax.jit(lambda denoise: SAMPLERS[name](keys, denoise, z, logsnrs, clip=False, **options), static_argnums=0)
    by_classifier = run(classifier_guided(MIXTURE.eps, score_of(LABEL), SCALES))
    np.testing.assert_allclose(
        by_classifier, run(classifier_free(MIXTURE.eps, LABEL, scale_to_weight(SCALES), NULL)), rtol=1e-5, atol=2e-5
    )


def test_scale_one_is_the_conditional_model():
    np.testing.assert_allclose(guided_eps(1.0), eps(Z, LOGSNR, LABEL), atol=3e-6)


def test_the_two_kinds_of_guidance_add():
    s, w = 1.5, 2.0
    both = classifier_guided(lambda *_: free_eps(w), score_of(LABEL), s)(Z, LOGSNR)
    _, sigma = alpha_sigma(LOGSNR[:, None])
    np.testing.assert_allclose(both, free_eps(w) - s * sigma * score_of(LABEL)(Z, LOGSNR), atol=3e-6)
    np.testing.assert_allclose(both, free_eps(w + s), atol=5e-6)  # the classifier being exact


# The density that is sampled

# Two classes of two components each, so that neither class is Gaussian.
FOUR = GaussianMixture([[-2.0], [-0.5], [0.6], [1.8]], [0.3, 0.4, 0.3, 0.25], [0.3, 0.2, 0.3, 0.2])
X = np.linspace(-6, 6, 12_001)


def pair_logits(z, logsnr):
    """log p(c | z_λ = z) of components 0 and 2 as class 0, 1 and 3 as class 1."""
    components = FOUR.log_posterior(z, logsnr)
    return jnp.logaddexp(components[:, :2], components[:, 2:])


def distance(name, form, s, n=2048):
    """sup |F_n − F| of n samples to p(x) p(c|x)^s."""
    found = sample(name, form, s, mixture=FOUR, logits_fn=pair_logits, n=n, num_steps=128)
    x = jnp.asarray(X[:, None], jnp.float32)
    density = jax.nn.softmax(FOUR.log_prob(x) + s * pair_logits(x, jnp.inf)[:, 1])
    cdf = np.interp(np.sort(found[:, 0]), X, np.cumsum(density))
    return max(np.abs(cdf - np.arange(n) / n).max(), np.abs(cdf - np.arange(1, n + 1) / n).max())


@every_form
def test_at_scale_one_the_samples_are_the_classs(name, form):
    # 0.043 is the Monte-Carlo error at p = 0.001, 0.013 at most that of 128 steps, found with 20,000 samples
    assert distance(name, form, 1.0) < 0.043 + 0.013


@every_form
def test_at_scale_three_the_samples_are_off_the_tilted_density(name, form):
    # s ∇ log p(c|z) is not what tilting the data by p(c|x)^s adds to the score, unless s = 1. More steps win nothing:
    # of 20,000 samples, at 64, 128 and 256 steps, the distance is .28 … .32, with DDIM .46; at s = 0.5 it is .08 … .11.
    assert 0.25 < distance(name, form, 3.0) < 0.5


# Of a rare class of the same width, log p(c|x) is linear in x where there is data, and p(x) p(c|x)^s is p(x) shifted
# by s times the distance of the classes; its log-expectation given z is linear in z, and tilting exact at every level.
RARE = GaussianMixture([[-0.3], [0.5]], [0.7, 0.7], [1.0, 1e-12])
SHIFT = 0.8


def shifts(name, form, scales, num_steps):
    """(x(s) − x(0)) / s of 16 samples, [S, 16]."""
    options = dict(mixture=RARE, logits_fn=RARE.log_posterior, n=16, num_steps=num_steps)
    plain = sample(name, form, 0.0, **options)
    return np.stack([(sample(name, form, s, **options) - plain)[:, 0] / s for s in scales])


@pytest.mark.parametrize("name", SAMPLERS)
def test_of_a_rare_class_guided_samples_are_the_tilted_densitys_at_every_scale(name):
    found = shifts(name, "eps", (-2.0, 0.5, 1.0, 3.0, 6.0), 16)
    np.testing.assert_allclose(found, SHIFT, rtol=1e-3)  # without an error of the steps


@pytest.mark.parametrize("form", ["mean, at z", "mean, at mean"])
def test_of_a_rare_class_the_mean_forms_error_halves_with_the_step(form):
    errors = np.array([np.abs(shifts("ancestral", form, (-2.0, 1.0, 6.0), n) / SHIFT - 1).max() for n in (65, 129)])
    assert errors[1] < 0.06
    np.testing.assert_allclose(errors[0] / errors[1], 2, rtol=0.1)


# The wrappers


def test_the_score_is_the_gradient_of_the_log_posterior():
    one = jax.grad(lambda z, logsnr, label: MIXTURE.log_posterior(z[None], logsnr)[0, label])
    expected = jax.jit(jax.vmap(one))(Z, LOGSNR, LABEL)
    np.testing.assert_allclose(score_of(LABEL)(Z, LOGSNR), expected, rtol=1e-4, atol=1e-6)
    raised = classifier_score(lambda z, logsnr: MIXTURE.log_posterior(z, logsnr) + 5.0, LABEL)
    np.testing.assert_allclose(raised(Z, LOGSNR), expected, rtol=1e-4, atol=1e-5)  # logits need no normalisation


def test_a_batch_of_one_is_guided_as_its_row_of_eight():
    # a gradient of the mean over the batch would be an eighth
    score = lambda i: score_of(LABEL[i])(Z[i], LOGSNR[i])
    together = score(slice(None))
    for i in range(8):
        np.testing.assert_allclose(score(slice(i, i + 1))[0], together[i], rtol=1e-5, atol=1e-6)


def test_a_scale_per_sample_is_each_samples_scalar():
    each = jnp.stack([guided_eps(s)[i] for i, s in enumerate(SCALES)])
    np.testing.assert_allclose(guided_eps(SCALES), each, rtol=1e-5)
    shift = lambda s: classifier_shift(score_of(LABEL), s)(Z, Z, LOGSNR, LOGSNR + 1)
    np.testing.assert_allclose(shift(SCALES), jnp.stack([shift(s)[i] for i, s in enumerate(SCALES)]), rtol=1e-5)


def test_a_scalar_label_and_level_stand_for_the_whole_batch():
    full = score_of(jnp.full(8, 1))(Z, jnp.full(8, -1.0))
    np.testing.assert_allclose(score_of(1)(Z, -1.0), full, rtol=1e-5)


def test_scale_zero_is_the_identity():
    guided = classifier_guided(eps, score_of(LABEL), 0.0)(Z, LOGSNR)
    np.testing.assert_array_equal(guided, eps(Z, LOGSNR))
    shift = classifier_shift(score_of(LABEL), jnp.zeros(8))(Z, Z, LOGSNR, LOGSNR + 1)
    np.testing.assert_array_equal(shift, np.zeros((8, 2)))


def test_the_learned_variance_passes_through_untouched():
    rest = jax.random.normal(jax.random.key(3), (8, 2))
    both = lambda z, logsnr: jnp.concatenate([eps(z, logsnr), rest], axis=-1)
    found = classifier_guided(both, score_of(LABEL), 3.0)(Z, LOGSNR)
    np.testing.assert_array_equal(found[:, 2:], rest)
    np.testing.assert_array_equal(found[:, :2], classifier_guided(eps, score_of(LABEL), 3.0)(Z, LOGSNR))


@pytest.mark.parametrize("at", ["z", "mean"])
def test_the_gradient_is_taken_where_it_is_asked_for(at):
    mean, logsnr_next = 0.5 * Z + 1, LOGSNR + 1
    found = classifier_shift(score_of(LABEL), 2.0, at=at)(Z, mean, LOGSNR, logsnr_next)
    point = (Z, LOGSNR) if at == "z" else (mean, logsnr_next)
    np.testing.assert_allclose(found, 2 * score_of(LABEL)(*point), rtol=1e-6)


def test_another_place_is_an_error():
    with pytest.raises(ValueError, match="at is 'x'; need 'z' or 'mean'"):
        classifier_shift(score_of(LABEL), 1.0, at="x")


def test_the_gradient_is_float32_whatever_the_classifier_computes_in():
    logits_fn = lambda z, logsnr: jnp.concatenate([z, 0 * z], axis=-1).astype(jnp.bfloat16)
    z = jnp.array([[9.0], [0.5], [-6.0]])
    found = classifier_score(logits_fn, 0)(z, 0.0)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, jax.nn.sigmoid(-z), rtol=2**-8)  # 0 where bfloat16 takes p(c|z) for 1
    assert classifier_score(logits_fn, 0)(z.astype(jnp.bfloat16), 0.0).dtype == jnp.float32
    guided = classifier_guided(lambda z, logsnr: z, classifier_score(logits_fn, 0), 1.0)
    assert guided(z.astype(jnp.bfloat16), 0.0).dtype == jnp.float32


def test_images_are_guided_as_points_are():
    # a classifier of the mean brightness: the same push for every pixel
    images = jax.random.normal(jax.random.key(1), (4, 2, 3, 1))
    logits_fn = lambda z, logsnr: jnp.stack([z.mean(axis=(1, 2, 3)) * logsnr, jnp.zeros(4)], axis=-1)
    logsnr, s = jnp.linspace(-1.0, 2.0, 4), jnp.arange(4.0)
    guided = jax.jit(classifier_guided(lambda z, logsnr: z, classifier_score(logits_fn, 0), s))(images, logsnr)
    _, sigma = alpha_sigma(logsnr)
    push = s * sigma * logsnr / 6 * jax.nn.sigmoid(-images.mean(axis=(1, 2, 3)) * logsnr)
    np.testing.assert_allclose(guided, images - broadcast_left(push, images), rtol=1e-5, atol=1e-6)


def test_a_conditional_model_is_guided_too():
    model = conditional(eps, LABEL)
    found = classifier_guided(model, score_of(LABEL), 2.0)(Z, LOGSNR)
    np.testing.assert_allclose(found, guided_eps(3.0), atol=5e-6)  # the classifier being exact
