"""Laws of classifier guidance, on Gaussian mixtures with their exact classifier."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.diffusion import samplers
from cfgjax.diffusion.guidance import cfg, classifier, conditional, scale_to_weight, score_function
from cfgjax.diffusion.mixture import GaussianMixture
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import alpha_sigma, broadcast_left, diffuse
from cfgjax.diffusion.samplers import ancestral, ddim, initial_noise
from cfgjax.diffusion.schedules import logsnr_grid

pytestmark = pytest.mark.slow

MIXTURE = GaussianMixture(np.array([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]]), np.array([0.4, 0.8, 0.6]), [0.5, 0.3, 0.2])
NULL = MIXTURE.num_components
Z = jax.random.normal(jax.random.key(0), (8, 2))
LOGSNR, LABEL, SCALES = jnp.linspace(-4.0, 4.0, 8), jnp.arange(8) % NULL, jnp.linspace(-1.0, 6.0, 8)
predict = jax.jit(MIXTURE.predict)
unconditional = lambda z, logsnr, label: predict(z, logsnr)
every_sampler = pytest.mark.parametrize("sampler", [ancestral(0.3), ddim()], ids=repr)
SETTINGS = [(ddim(), "eps"), *((ancestral(0.3), form) for form in ("eps", "z", "mean"))]
every_form = pytest.mark.parametrize(("sampler", "form"), SETTINGS, ids=str)


def guide(logits_fn):
    """The guide of a classifier with these logits: log p(label | z)."""

    def log_prob(z, logsnr, label):
        dtype = jnp.promote_types(z.dtype, jnp.float32)
        log_probs = jax.nn.log_softmax(logits_fn(z, logsnr).astype(dtype))
        return jnp.take_along_axis(log_probs, label[:, None], axis=1)[:, 0]

    return jax.tree_util.Partial(log_prob)


EXACT, UNGUIDED = guide(MIXTURE.log_posterior), conditional()
score_at = jax.jit(lambda z, logsnr, label: score_function(EXACT, label)(z, logsnr))
score_of = lambda label: lambda z, logsnr: score_at(z, logsnr, label)


def guided(s, model=unconditional, rule=UNGUIDED, w=0.0, guide=EXACT):
    """The denoiser of a rule with the classifier's gradient at scale s."""
    return classifier(rule, s, guide=guide)(model, LABEL, jnp.full_like(LABEL, NULL), w)


free = lambda w: cfg()(MIXTURE.predict, LABEL, jnp.full_like(LABEL, NULL), w)
guided_eps = jax.jit(lambda s: guided(s)(Z, LOGSNR, ())[0].eps)
free_eps = jax.jit(lambda w: free(w)(Z, LOGSNR).eps)


@functools.partial(jax.jit, static_argnames=("form", "mixture", "logits_fn", "n", "num_steps"))
def sample(sampler, form, s, *, mixture, logits_fn, n, num_steps, bound=20.0):
    """n samples of the mixture guided to the classifier's class 1."""
    keys, label = jax.random.split(jax.random.key(0), n), jnp.full(n, 1)
    model = lambda z, logsnr, label: mixture.predict(z, logsnr)
    denoise = classifier(conditional(), s, form, guide(logits_fn))(model, label, None, 0.0)
    logsnrs = logsnr_grid(num_steps, "cosine", -bound, bound)
    return samplers.sample(sampler, denoise, keys, initial_noise(keys, mixture.means.shape[1:]), logsnrs)


# Classifier guidance is classifier-free guidance


@pytest.mark.parametrize("s", [-2.0, 0.5, 1.0, 4.0, SCALES], ids=str)
def test_scale_s_on_the_unconditional_model_is_classifier_free_guidance_at_w_s_minus_one(s):
    np.testing.assert_allclose(guided_eps(s), free_eps(scale_to_weight(s)), atol=3e-6)


@every_sampler
def test_complete_runs_of_both_kinds_of_guidance_agree(sampler):
    keys, logsnrs = jax.random.split(jax.random.key(0), 8), logsnr_grid(16, "cosine", -10.0, 10.0)
    run = lambda denoise: samplers.sample(sampler, denoise, keys, initial_noise(keys, (2,)), logsnrs)
    by_classifier = jax.jit(lambda s: run(guided(s)))(SCALES)
    by_weight = jax.jit(lambda w: run(free(w)))(scale_to_weight(SCALES))
    np.testing.assert_allclose(by_classifier, by_weight, rtol=1e-5, atol=2e-5)


def test_scale_one_is_the_conditional_model():
    np.testing.assert_allclose(guided_eps(1.0), predict(Z, LOGSNR, LABEL).eps, atol=3e-6)


def test_the_two_kinds_of_guidance_add():
    s, w = 1.5, 2.0
    both = guided(s, MIXTURE.predict, cfg(), w)(Z, LOGSNR, ())[0].eps
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


def distance(sampler, form, s, n=2048):
    """sup |F_n − F| of n samples to p(x) p(c|x)^s."""
    found = sample(sampler, form, s, mixture=FOUR, logits_fn=pair_logits, n=n, num_steps=128)
    x = jnp.asarray(X[:, None], jnp.float32)
    density = jax.nn.softmax(FOUR.log_prob(x) + s * pair_logits(x, jnp.inf)[:, 1])
    cdf = np.interp(np.sort(found[:, 0]), X, np.cumsum(density))
    return max(np.abs(cdf - np.arange(n) / n).max(), np.abs(cdf - np.arange(1, n + 1) / n).max())


@every_form
def test_at_scale_one_the_samples_are_from_the_class(sampler, form):
    # 0.043 is the Monte-Carlo error at p = 0.001, 0.013 at most that of 128 steps, found with 20,000 samples
    assert distance(sampler, form, 1.0) < 0.043 + 0.013


@every_form
def test_at_scale_three_the_samples_differ_from_the_tilted_density(sampler, form):
    # s ∇ log p(c|z) is not what tilting the data by p(c|x)^s adds to the score, unless s = 1. More steps win nothing:
    # of 20,000 samples, at 64, 128 and 256 steps, the distance is .28 … .32, with DDIM .46; at s = 0.5 it is .08 … .11.
    assert 0.25 < distance(sampler, form, 3.0) < 0.5


# Of a rare class of the same width, log p(c|x) is linear in x where there is data, and p(x) p(c|x)^s is p(x) shifted
# by s times the distance of the classes; its log-expectation given z is linear in z, and tilting exact at every level.
RARE = GaussianMixture([[-0.3], [0.5]], [0.7, 0.7], [1.0, 1e-12])
SHIFT = 0.8


def shifts(sampler, form, scales, num_steps):
    """(x(s) − x(0)) / s of 16 samples, [S, 16]."""
    options = dict(mixture=RARE, logits_fn=RARE.log_posterior, n=16, num_steps=num_steps)
    plain = sample(sampler, form, 0.0, **options)
    return np.stack([(sample(sampler, form, s, **options) - plain)[:, 0] / s for s in scales])


@every_sampler
def test_guided_samples_of_a_rare_class_follow_the_tilted_density_at_every_scale(sampler):
    found = shifts(sampler, "eps", (-2.0, 0.5, 1.0, 3.0, 6.0), 16)
    np.testing.assert_allclose(found, SHIFT, rtol=1e-3)  # without an error of the steps


@pytest.mark.parametrize("form", ["z", "mean"])
def test_the_error_of_the_mean_form_for_a_rare_class_halves_with_the_step(form):
    errors = np.array([np.abs(shifts(ancestral(0.3), form, (-2.0, 1.0, 6.0), n) / SHIFT - 1).max() for n in (65, 129)])
    assert errors[1] < 0.06
    np.testing.assert_allclose(errors[0] / errors[1], 2, rtol=0.1)


# The rule


def test_the_score_is_the_gradient_of_the_log_posterior():
    one = jax.grad(lambda z, logsnr, label: MIXTURE.log_posterior(z[None], logsnr)[0, label])
    expected = jax.jit(jax.vmap(one))(Z, LOGSNR, LABEL)
    np.testing.assert_allclose(score_of(LABEL)(Z, LOGSNR), expected, rtol=1e-4, atol=1e-6)


def test_a_sample_is_guided_equally_alone_and_in_a_batch_of_eight():
    # a gradient of the mean over the batch would be an eighth
    score = lambda i: score_of(LABEL[i])(Z[i], LOGSNR[i])
    together = score(slice(None))
    for i in range(8):
        np.testing.assert_allclose(score(slice(i, i + 1))[0], together[i], rtol=1e-5, atol=1e-6)


def shift_of(s, form="z"):
    return classifier(conditional(), s, form, EXACT)(unconditional, LABEL, None, 0.0).shift


def test_a_scale_per_sample_equals_scalar_scales():
    each = jnp.stack([guided_eps(s)[i] for i, s in enumerate(SCALES)])
    np.testing.assert_allclose(guided_eps(SCALES), each, rtol=1e-5)
    shift = lambda s: shift_of(s)(Z, Z, LOGSNR, LOGSNR + 1)
    np.testing.assert_allclose(shift(SCALES), jnp.stack([shift(s)[i] for i, s in enumerate(SCALES)]), rtol=1e-5)


def test_scale_zero_is_the_identity():
    found, _ = guided(0.0)(Z, LOGSNR, ())
    jax.tree.map(np.testing.assert_array_equal, found, predict(Z, LOGSNR))
    np.testing.assert_array_equal(shift_of(jnp.zeros(8))(Z, Z, LOGSNR, LOGSNR + 1), np.zeros((8, 2)))


def test_the_guided_pair_adds_up_to_z():
    found, _ = guided(3.0)(Z, LOGSNR, ())
    np.testing.assert_allclose(diffuse(found.x, found.eps, LOGSNR), Z, atol=1e-5)


def test_the_learned_variance_is_not_changed():
    variance = jax.random.normal(jax.random.key(3), (8, 2))
    model = lambda z, logsnr, label: predict(z, logsnr)._replace(variance=variance)
    found, _ = guided(3.0, model)(Z, LOGSNR, ())
    np.testing.assert_array_equal(found.variance, variance)
    np.testing.assert_array_equal(found.eps, guided(3.0)(Z, LOGSNR, ())[0].eps)


@pytest.mark.parametrize("form", ["z", "mean"])
def test_the_gradient_is_taken_at_the_point_of_the_form(form):
    mean, logsnr_next = 0.5 * Z + 1, LOGSNR + 1
    found = shift_of(2.0, form)(Z, mean, LOGSNR, logsnr_next)
    point = (Z, LOGSNR) if form == "z" else (mean, logsnr_next)
    np.testing.assert_allclose(found, 2 * score_of(LABEL)(*point), rtol=1e-4, atol=1e-6)


def test_shifts_of_the_mean_add_up():
    inner = classifier(conditional(), 1.5, "mean", EXACT)
    both = classifier(inner, 2.0, "z", EXACT)(unconditional, LABEL, None, 0.0).shift
    arguments = Z, 0.5 * Z, LOGSNR, LOGSNR + 1
    np.testing.assert_allclose(
        both(*arguments), shift_of(2.0)(*arguments) + shift_of(1.5, "mean")(*arguments), rtol=1e-5
    )


@pytest.mark.parametrize("form", ["z", "mean"])
def test_a_sampler_without_a_mean_refuses_to_shift_it(form):
    with pytest.raises(ValueError, match=r"\Addim\(\) has no mean .* ancestral"):
        sample(ddim(), form, 1.0, mixture=MIXTURE, logits_fn=MIXTURE.log_posterior, n=2, num_steps=4)


@pytest.mark.parametrize(
    ("options", "message"), [({"form": "x"}, "form is 'x'"), ({"scale": "large"}, "scale is 'large'")]
)
def test_an_invalid_rule_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        classifier(**options)


def test_a_rule_without_a_guide_is_an_error():
    with pytest.raises(ValueError, match="no guide"):
        guided(1.0, guide=None)


def test_at_weight_zero_the_null_branch_is_omitted_and_the_gradient_is_not():
    rule = classifier(cfg(), 2.0, "mean", EXACT)
    assert rule.uses_null and rule.at_zero == classifier(conditional(), 2.0, "mean", EXACT)
    assert not rule.at_zero.uses_null and rule.shifts_mean


def test_the_gradient_is_float32_whatever_the_classifier_computes_in():
    logits_fn = lambda z, logsnr: jnp.concatenate([z, 0 * z], axis=-1).astype(jnp.bfloat16)
    z, label = jnp.array([[9.0], [0.5], [-6.0]]), jnp.zeros(3, jnp.int32)
    found = score_function(guide(logits_fn), label)(z, 0.0)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, jax.nn.sigmoid(-z), rtol=2**-8)  # 0 where bfloat16 takes p(c|z) for 1
    assert score_function(guide(logits_fn), label)(z.astype(jnp.bfloat16), 0.0).dtype == jnp.float32
    rule = classifier(conditional(), 1.0, guide=guide(logits_fn))
    denoise = rule(lambda z, logsnr, label: Prediction(z, z), label, None, 0.0)
    assert denoise(z.astype(jnp.bfloat16), jnp.float32(0.0), ())[0].eps.dtype == jnp.float32


def test_guidance_of_images_equals_that_of_points():
    # a classifier of the mean brightness: the same push for every pixel
    images = jax.random.normal(jax.random.key(1), (4, 2, 3, 1))
    logits_fn = lambda z, logsnr: jnp.stack([z.mean(axis=(1, 2, 3)) * logsnr, jnp.zeros(4)], axis=-1)
    logsnr, s = jnp.linspace(-1.0, 2.0, 4), jnp.arange(4.0)
    rule = classifier(conditional(), s, guide=guide(logits_fn))
    denoise = rule(lambda z, logsnr, label: Prediction(z, z), jnp.zeros(4, jnp.int32), None, 0.0)
    found = jax.jit(lambda z: denoise(z, logsnr, ())[0].eps)(images)
    _, sigma = alpha_sigma(logsnr)
    push = s * sigma * logsnr / 6 * jax.nn.sigmoid(-images.mean(axis=(1, 2, 3)) * logsnr)
    np.testing.assert_allclose(found, images - broadcast_left(push, images), rtol=1e-5, atol=1e-6)


def test_a_conditional_model_can_be_guided():
    found, _ = guided(2.0, MIXTURE.predict)(Z, LOGSNR, ())
    np.testing.assert_allclose(found.eps, guided_eps(3.0), atol=5e-6)  # the classifier being exact
