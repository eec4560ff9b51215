"""Laws of drawing training levels by the second moment of their loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.diffusion.losses import BINS, KEPT, UNIFORM_SHARE, level_probabilities, new_history, redraw_levels, remember

CENTRES = (jnp.arange(BINS) + 0.5) / BINS
remember_all = jax.jit(remember)
N = 20_000


def loss_of(u):
    """A loss that some levels have a hundred times as much of as others."""
    return jnp.exp(-8 * u) + 0.01


@pytest.fixture(scope="module")
def warm():
    """A history with every bin full, of `loss_of` times 0, 2, 0, 2, …"""
    history = new_history()
    for i in range(KEPT):
        history = remember_all(history, CENTRES, (i % 2) * 2 * loss_of(CENTRES))
    return history


@jax.jit
def redraw(history):
    """(u [N], weights [N])."""
    return redraw_levels(jax.random.key(1), jax.random.uniform(jax.random.key(0), (N,)), history)


@pytest.fixture(scope="module")
def drawn(warm):
    return redraw(warm)


def test_probabilities_follow_the_root_mean_square_mixed_with_the_uniform(warm):
    p = np.asarray(level_probabilities(warm), np.float64)
    root = np.sqrt(2) * np.asarray(loss_of(CENTRES), np.float64)  # of 0 and 2 in turn; their mean would be 1
    np.testing.assert_allclose(p, (1 - UNIFORM_SHARE) * root / root.sum() + UNIFORM_SHARE / BINS, rtol=1e-5)
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-6)
    wilder = dict(warm, losses=warm["losses"].at[7, -1].mul(3))
    larger = level_probabilities(wilder)[7] / level_probabilities(wilder)[8] / (p[7] / p[8])
    np.testing.assert_allclose(larger, np.sqrt((4 + 9) / 5), rtol=1e-3)  # one of the five 2s has become a 6


def test_every_level_keeps_a_minimum_probability():
    history = {"losses": jnp.zeros((BINS, KEPT)).at[3].set(1.0), "counts": jnp.full(BINS, KEPT)}
    p = level_probabilities(history)
    np.testing.assert_allclose(p.min(), UNIFORM_SHARE / BINS, rtol=1e-6)
    np.testing.assert_allclose(p[3], 1 - UNIFORM_SHARE, rtol=1e-4)


@pytest.mark.slow
def test_levels_are_uniform_until_every_bin_is_full(warm):
    for history in (new_history(), dict(warm, counts=warm["counts"].at[500].set(KEPT - 1))):
        np.testing.assert_allclose(level_probabilities(history), 1 / BINS, rtol=1e-6)
        u, weights = redraw(history)
        np.testing.assert_allclose(weights, 1, rtol=1e-6)
        share = np.histogram(u, np.linspace(0, 1, 11))[0] / N
        np.testing.assert_allclose(share, 0.1, atol=4 * np.sqrt(0.09 / N))


def test_levels_are_drawn_with_their_probabilities(warm, drawn):
    u, weights = drawn
    p = np.asarray(level_probabilities(warm))
    bins = np.clip((np.asarray(u, np.float64) * BINS).astype(int), 0, BINS - 1)
    for part in np.split(np.arange(BINS), 10):
        share = p[part].sum()
        assert abs(np.isin(bins, part).mean() - share) < 4 * np.sqrt(share * (1 - share) / N)
    np.testing.assert_allclose(np.median(weights * p[bins] * BINS), 1, rtol=1e-5)
    within = np.asarray(u, np.float64) * BINS % 1
    np.testing.assert_allclose([within.mean(), within.std()], [0.5, np.sqrt(1 / 12)], atol=5 * 0.3 / np.sqrt(N))


FUNCTIONS = {
    "1": lambda u: np.ones_like(u),
    "u": lambda u: u,
    "cos 40u": lambda u: np.cos(40 * u),
    "the loss": loss_of,
    "the rare": lambda u: u > 0.9,
}


@pytest.mark.parametrize("f", FUNCTIONS)
def test_weighted_means_equal_those_over_uniform_levels(f, drawn):
    u, weights = drawn
    values = np.asarray(weights * FUNCTIONS[f](np.asarray(u)), np.float64)
    expected = np.mean(FUNCTIONS[f]((np.arange(100 * BINS) + 0.5) / (100 * BINS)))
    error = values.std() / np.sqrt(N)
    assert abs(values.mean() - expected) < 4 * error
    if f == "the loss":
        assert error < 0.3 * np.std(loss_of(np.linspace(0, 1, 1001))) / np.sqrt(N)  # which is what it is for


def test_the_last_losses_are_retained_in_order():
    bins, losses = np.random.default_rng(0).integers(0, 3, 100), np.arange(1.0, 101.0)
    history = new_history()
    for batch in np.split(np.arange(100), 4):
        history = remember_all(history, jnp.asarray(bins[batch] + 0.5) / BINS, jnp.asarray(losses[batch]))
    for i in range(3):
        np.testing.assert_array_equal(history["losses"][i], losses[bins == i][-KEPT:])
    np.testing.assert_array_equal(history["counts"][:3], np.bincount(bins))
    assert not np.any(history["losses"][3:]) and not np.any(history["counts"][3:])


def test_the_history_of_a_batch_equals_that_of_its_examples_in_order():
    u, losses = jax.random.uniform(jax.random.key(0), (2, 60))
    u = u * 4 / BINS
    together, apart = remember_all(new_history(), u, losses), new_history()
    for i in range(60):
        apart = remember_all(apart, u[i : i + 1], losses[i : i + 1])
    jax.tree.map(np.testing.assert_array_equal, together, apart)


def test_non_finite_losses_are_ignored(warm):
    bad = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 5.0])
    after = remember_all(warm, jnp.full(4, 0.5 / BINS), bad)
    only_good = remember_all(warm, jnp.full(1, 0.5 / BINS), jnp.array([5.0]))
    jax.tree.map(np.testing.assert_array_equal, after, only_good)


def test_both_ends_of_u_are_in_a_bin():
    history = remember_all(new_history(), jnp.array([0.0, 1.0]), jnp.array([2.0, 3.0]))
    np.testing.assert_array_equal(history["losses"][[0, -1], -1], [2, 3])
