"""Laws of a variance that the network predicts: in the samplers, in guidance, and in the hybrid loss that trains it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.diffusion import samplers
from cfgjax.diffusion.guidance import cfg, conditional
from cfgjax.diffusion.levels import Continuous, Discrete
from cfgjax.diffusion.likelihood import bits_per_dim
from cfgjax.diffusion.losses import eps_loss, hybrid_loss
from cfgjax.diffusion.prediction import PARAMETRISATIONS, Prediction
from cfgjax.diffusion.process import broadcast_left, eps_from_x, x_from_eps
from cfgjax.diffusion.samplers import ancestral, ddim, ddim_encode, initial_noise, noise_at
from cfgjax.diffusion.schedules import logsnr_grid

pytestmark = pytest.mark.slow

KEYS = jax.random.split(jax.random.key(0), 16)
GRID = logsnr_grid(4, "cosine", -10.0, 10.0)


def poor(z, logsnr):
    """An ε-predictor without variance."""
    return 0.9 * z + 0.1 * jnp.tanh(broadcast_left(logsnr, z))


def without_variance(z, logsnr):
    return PARAMETRISATIONS["eps"](poor(z, logsnr), z, logsnr)


def with_fraction(v, eps_fn=poor):
    """eps_fn with v, constant or one per dimension, as its learned fraction."""

    def denoise(z, logsnr):
        output = jnp.concatenate([eps_fn(z, logsnr), jnp.zeros_like(z) + 2 * v - 1], axis=-1)
        return PARAMETRISATIONS["eps"](output, z, logsnr)

    return denoise


def sample(sampler, denoise):
    return samplers.sample(sampler, denoise, KEYS, initial_noise(KEYS, (2,)), GRID)


@pytest.mark.parametrize("v", [0.0, 0.25, 1.0])
def test_a_constant_learned_variance_equals_the_fixed_one(v):
    # op by op: compiled whole, two programs may round the same formula differently
    with jax.disable_jit():
        np.testing.assert_array_equal(sample(ancestral(), with_fraction(v)), sample(ancestral(v), without_variance))


def test_each_dimension_has_its_own_variance():
    # at the second level x̃ is z/10, which the sampler then returns
    knowing = lambda z, logsnr: eps_from_x(z, jnp.where(logsnr[:, None] == -3, 2.0, 0.1 * z), logsnr)
    denoise = with_fraction(jnp.array([0.0, 1.0]), knowing)
    z_next = 10 * samplers.sample(ancestral(), denoise, KEYS, jnp.ones((16, 2)), jnp.array([-3.0, -1.0]))
    variance = jnp.square((z_next - 0.3222791550 - 0.4484113385 * 2) / noise_at(KEYS, 1, (2,)))
    np.testing.assert_allclose(variance, np.tile([0.6321205588, 0.8236572376], (16, 1)), rtol=1e-3)


def test_a_given_variance_overrides_the_learned_one():
    given = sample(ancestral(0.2), with_fraction(0.9))
    np.testing.assert_allclose(given, sample(ancestral(0.2), without_variance), rtol=1e-4)


def test_ddim_ignores_a_learned_variance():
    np.testing.assert_allclose(sample(ddim(), with_fraction(0.9)), sample(ddim(), without_variance), rtol=1e-4)
    codes = [
        ddim_encode(denoise, jnp.ones((4, 2)), GRID, clip=False) for denoise in (with_fraction(0.9), without_variance)
    ]
    np.testing.assert_allclose(*codes, rtol=1e-4)


def test_a_sampler_without_any_variance_is_an_error():
    with pytest.raises(ValueError, match="v is None and the network has no learned variance: give v"):
        sample(ancestral(), without_variance)


def test_guidance_takes_the_variance_of_the_conditional_branch():
    eps = lambda z, label: z * label[:, None]
    predict = lambda z, logsnr, label: Prediction(-eps(z, label), eps(z, label), z + label[:, None])
    z, label, logsnr = initial_noise(KEYS, (2,)), jnp.arange(16) % 3, jnp.zeros(16)
    arguments = predict, label, jnp.full(16, 3), 3.0
    guided = cfg()(*arguments)(z, logsnr)
    np.testing.assert_allclose(guided.eps, 4 * eps(z, label) - 3 * eps(z, jnp.full(16, 3)), rtol=1e-6)
    np.testing.assert_allclose(guided.x, -guided.eps, rtol=1e-6)
    np.testing.assert_array_equal(guided.variance, conditional()(*arguments)(z, logsnr).variance)


# The hybrid loss

SHAPE = (4, 4, 3)
PIXELS = np.random.default_rng(0).integers(0, 256, (16, *SHAPE))
PIXELS[:, 0] = [[0, 0, 255]] * 4  # the ends, whose bins are open
X = jnp.asarray(PIXELS / 127.5 - 1, jnp.float32)
EPS = jax.random.normal(jax.random.key(1), X.shape)
OUT = jnp.concatenate([EPS + 0.3, 1.5 * jax.random.normal(jax.random.key(2), X.shape)], axis=-1)  # v beyond [0, 1] too
U = {
    Continuous(): np.array([0, 1e-7, 5e-4, 9.999e-4, 1e-3, 1.001e-3, 2e-3, 0.1, 0.5, 0.9, 0.998, 0.9999, 1 - 2**-24]),
    Continuous("uniform", bound_steps=10): np.linspace(0, 1 - 2**-24, 31),
    Discrete("cosine"): np.array([0, 1, 2, 500, 997, 998, 999]) / 1000 + 5e-4,
    Discrete("linear"): np.array([0, 1, 2, 500, 999]) / 1000 + 5e-4,
}
every_process = pytest.mark.parametrize("levels", U, ids=str)


def at(levels, u):
    """logsnr, neighbour, last of u, padded to the sixteen examples."""
    u = jnp.resize(jnp.asarray(u, jnp.float32), 16)
    return levels.logsnr(u), *levels.neighbour(u)


@jax.jit
def hybrid(out, logsnr, neighbour, last, bound_steps=1000):
    return hybrid_loss(
        lambda z, logsnr, _: PARAMETRISATIONS["eps"](out, z, logsnr),
        X,
        None,
        EPS,
        logsnr,
        neighbour,
        last,
        bound_steps=bound_steps,
    )


@jax.jit
def gradients(out, *levels):
    """d Σ mse / d out and d Σ bound / d out."""
    total = lambda out, name: hybrid(out, *levels)[name].sum()
    return [jax.grad(total)(out, name) for name in ("mse", "bound")]


@every_process
def test_the_bound_only_trains_the_variance_and_the_mse_only_trains_eps(levels):
    logsnr, *rest = at(levels, U[levels])
    mse, bound = gradients(OUT, logsnr, *rest)
    np.testing.assert_array_equal(bound[..., :3], 0)
    np.testing.assert_array_equal(mse[..., 3:], 0)
    trained = np.any(bound[..., 3:] != 0, axis=(1, 2, 3))
    assert np.all(trained[logsnr < 11])  # above, a bin may hold all of the mass whatever the variance
    np.testing.assert_allclose(mse[..., :3], 2 * (OUT[..., :3] - EPS) / 48, rtol=1e-5)


@every_process
@pytest.mark.parametrize("off", [0.0, 0.3, 30.0])
def test_values_and_gradients_are_finite_at_both_ends(levels, off):
    out = OUT.at[..., :3].set(EPS + off)
    for u in np.array_split(U[levels], -(-len(U[levels]) // 16)):
        found = hybrid(out, *at(levels, u)), gradients(out, *at(levels, u))
        assert jax.tree.all(jax.tree.map(lambda a: np.isfinite(a).all(), found))


def test_the_hybrid_loss_is_the_simple_loss_plus_a_thousandth_of_the_bound():
    levels = at(Discrete(), np.arange(16) / 16)
    found = hybrid(OUT, *levels)
    np.testing.assert_allclose(
        found["mse"], eps_loss(lambda *_: Prediction(None, OUT[..., :3]), X, None, EPS, levels[0]), rtol=1e-6
    )
    np.testing.assert_allclose(found["loss"], found["mse"] + 0.001 * found["bound"], rtol=1e-6)
    assert found["loss"].dtype == jnp.float32


@jax.jit
def two_bounds(*levels):
    """The hybrid loss at 16 levels from the cleanest, and `bits_per_dim` on them with the same noise."""
    noise = jax.vmap(lambda t: noise_at(KEYS[:1], 15 - t, SHAPE)[0])(jnp.arange(16))  # bits_per_dim starts at noise

    def predict(z, logsnr, cond=None):
        eps = poor(z, logsnr)
        return Prediction(x_from_eps(z, eps, logsnr), eps, (jnp.sin(3 * z) + 1) / 2)

    hybrid = hybrid_loss(predict, jnp.tile(X[:1], (16, 1, 1, 1)), None, noise, *levels, bound_steps=16)
    return hybrid["bound"], bits_per_dim(KEYS[:1], predict, X[:1], levels[0][::-1], v=None, clip=False)


@pytest.mark.parametrize("levels", [Discrete("cosine", 16), Continuous("uniform", -8.0, 8.0, bound_steps=16)], ids=str)
def test_the_bound_over_all_levels_equals_bits_per_dimension_without_the_prior(levels):
    u = jnp.asarray((np.arange(16) + 0.5) / 16, jnp.float32)
    bound, bits = two_bounds(levels.logsnr(u), *levels.neighbour(u))
    np.testing.assert_allclose(bound / 16, bits["terms"][0, ::-1], rtol=1e-3)
    np.testing.assert_allclose(bound.mean(), bits["total"][0] - bits["prior"][0], rtol=1e-4)


@pytest.mark.parametrize("levels", [Continuous(), Discrete("cosine")], ids=str)
def test_the_posterior_variance_is_the_best_for_a_model_that_knows_the_image(levels):
    arguments = at(levels, np.linspace(0.3, 0.7, 16))
    slope = lambda off: gradients(jnp.concatenate([EPS + off, -jnp.ones_like(EPS)], axis=-1), *arguments)[1][..., 3:]
    np.testing.assert_allclose(slope(0.0), 0, atol=1e-5)
    assert np.all(slope(1.0) < -5e-5)


def test_the_hybrid_loss_needs_a_learned_variance():
    with pytest.raises(ValueError, match="the network has no learned variance"):
        hybrid(EPS, *at(Discrete(), [0.5]))
