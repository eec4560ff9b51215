import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import digits_config, mixture_config, same_trees

from cfgjax.distributed.sharding import make_mesh, parameter_sharding, place_batch
from cfgjax.training.log import summarise
from cfgjax.training.loop import Run
from cfgjax.training.state import create_state

BIG = {"model.width": 256, "train.batch_size": 64}  # wide enough for fsdp to split something
DAMPED = {
    "optimizer.eps": 1e-3,
    "optimizer.warmup_steps": 0,
}  # else Adam's first steps are signs of gradients, even of their rounding errors


@functools.cache
def single(**overrides):
    """The run of the mixture on one device; tests that ask for the same share its programs."""
    return Run(mixture_config(**{"mesh.data": 1, **overrides}), jax.devices()[:1])


def advance(run, dispatches, change=lambda state: state):
    """(state, metrics [steps]) after some dispatches from step 0, changed."""
    state, seen = change(create_state(run.build_state, run.mesh)), []
    for i in range(dispatches):
        state, metrics = run.dispatch(state, run.batches(i * run.settings.train.steps_per_dispatch), run.step_key)
        seen.append(metrics)
    return jax.device_get(state), jax.tree.map(lambda *m: np.concatenate(m), *jax.device_get(seen))


def close(a, b, rtol):
    """Whether the trees agree to rtol of each array's largest entry, or of 1e-3 if that is larger."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.allclose(x, y, 0, rtol * max(np.abs(np.nan_to_num(x)).max(), 1e-3), equal_nan=True) for x, y in pairs)


def moments(state):
    """Adam's first moments: after one step the gradients, times 1 − b1."""
    return [s.mu for s in jax.tree.leaves(state.opt_state, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")]


MESHES = [{"mesh.data": 8}, {"mesh.data": 2, "mesh.fsdp": 4}, {"mesh.data": 1, "mesh.fsdp": 8}]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_the_step_on_eight_devices_equals_the_step_on_one(mesh):
    one, metrics_one = advance(single(**BIG, **DAMPED), 1, change=stir)
    eight, metrics_eight = advance(Run(mixture_config(**BIG, **DAMPED, **mesh)), 1, change=stir)
    assert close(moments(one), moments(eight), 2e-5)  # sums over the batch that nearly cancel
    assert close(one.params, eight.params, 1e-5)
    assert close(one.ema, eight.ema, 1e-5)
    assert close(metrics_one, metrics_eight, 1e-5)


@pytest.mark.slow
def test_the_unet_step_on_eight_devices_equals_the_step_on_one():
    config = lambda devices: digits_config(**{"train.steps_per_dispatch": 1, "mesh.data": devices})
    one, metrics_one = advance(Run(config(1), jax.devices()[:1]), 1, change=stir)
    eight, metrics_eight = advance(Run(config(8)), 1, change=stir)
    assert close(metrics_one, metrics_eight, 1e-5)
    sizes = [np.abs(leaf).max() for leaf in jax.tree.leaves(moments(one))]
    assert np.median(sizes) > 1e-4  # the biases before a GroupNorm and those of the keys have no gradient
    assert close(moments(one), moments(eight), 1e-5)


def stir(state):
    """state with noise in its parameters, so that zero-initialised layers pass gradients on."""
    leaves, tree = jax.tree.flatten(state.params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    add = lambda p, key: jax.device_put(p + 0.1 * jax.random.normal(key, p.shape), p.sharding)
    return state._replace(params=tree.unflatten(map(add, leaves, keys)))


def test_fsdp_splits_large_arrays_of_parameters_averages_and_optimizer_alike():
    run = Run(mixture_config(**BIG, **{"mesh.data": 1, "mesh.fsdp": 8}))
    state = create_state(run.build_state, run.mesh)
    for tree in (state.params, state.ema["0.999"], state.opt_state.inner_state[1][0].mu):
        kernel = tree["hidden_0_0"]["kernel"]
        assert kernel.addressable_shards[0].data.size == kernel.size // 8
        assert tree["out"]["bias"].sharding.is_fully_replicated


@pytest.mark.slow
def test_several_steps_in_one_dispatch_are_the_same_steps():
    one_by_one, metrics = advance(single(), 4)
    several, metrics_several = advance(single(**{"train.steps_per_dispatch": 2}), 2)
    assert close(one_by_one, several, 1e-6)
    assert close(metrics, metrics_several, 1e-6)


def test_accumulated_gradients_equal_those_of_the_full_batch():
    whole, metrics = advance(single(), 3)
    parts, metrics_parts = advance(single(**{"train.accumulate_steps": 2}), 3)
    assert close(whole.params, parts.params, 1e-5)
    assert close(metrics, metrics_parts, 1e-5)


def test_the_averages_start_as_copies_of_the_parameters():
    run = single(**{"ema.rates": (0.5, 0.999)})
    state = create_state(run.build_state, run.mesh)
    assert same_trees(state.ema["0.5"], state.params)
    assert same_trees(state.ema["0.999"], state.params)
    shared = {leaf.unsafe_buffer_pointer() for leaf in map(first_shard, jax.tree.leaves(state.params))}
    assert not shared & {leaf.unsafe_buffer_pointer() for leaf in map(first_shard, jax.tree.leaves(state.ema))}


def first_shard(array):
    return array.addressable_shards[0].data


def test_the_loss_splits_into_its_conditional_and_unconditional_parts():
    _, m = advance(single(**{"diffusion.p_uncond": 0.5}), 20)
    assert np.allclose(m["loss"], (1 - m["drop_rate"]) * m["loss_cond"] + m["drop_rate"] * m["loss_uncond"], rtol=1e-5)
    assert 0.2 < m["drop_rate"].mean() < 0.8


@pytest.mark.slow
@pytest.mark.parametrize(("p_uncond", "without"), [(0.0, "loss_uncond"), (1.0, "loss_cond")])
def test_the_loss_of_a_kind_without_examples_is_not_logged(p_uncond, without):
    _, m = advance(single(**{"diffusion.p_uncond": p_uncond, "sample.guidance": (0.0,)}), 2)
    logged = summarise([{name: float(values[i]) for name, values in m.items()} for i in range(2)])
    other = {"loss_uncond": "loss_cond", "loss_cond": "loss_uncond"}[without]
    assert without not in logged
    assert np.isclose(logged[other], logged["loss"], rtol=1e-6)


def test_noise_differs_between_steps_and_repeats_with_the_step():
    run = single()
    fresh = lambda: create_state(run.build_state, run.mesh)
    batch = run.batches(0)
    at_0, again_0 = (run.dispatch(fresh(), batch, run.step_key)[1]["loss"] for _ in range(2))
    at_1 = run.dispatch(fresh()._replace(step=jnp.int32(1)), batch, run.step_key)[1]["loss"]
    assert at_0 == again_0
    assert at_0 != at_1


def place_all(mesh, batch):
    """A dispatch's batches, whole in this process, on the mesh."""
    size = batch["image"].shape[1]
    return place_batch(mesh, batch, np.arange(size), size, leading=1)


def poisoned(run, step):
    """The batch of a step with one NaN in it."""
    batch = jax.device_get(run.batches(step))
    batch["image"] = batch["image"].copy()
    batch["image"][0, 3, 1] = np.nan
    return place_all(run.mesh, batch)


def test_a_non_finite_step_changes_only_the_counts():
    run = Run(mixture_config(**{"ema.widths": (0.1,)}))
    state, _ = run.dispatch(create_state(run.build_state, run.mesh), run.batches(0), run.step_key)
    before = jax.device_get(state)
    state, metrics = run.dispatch(state, poisoned(run, 1), run.step_key)
    after = jax.device_get(state)
    assert int(after.step) == 2
    assert same_trees((before.params, before.ema), (after.params, after.ema))
    assert same_trees(before.opt_state.inner_state, after.opt_state.inner_state)
    assert [float(metrics[name][0]) for name in ("skipped", "skipped_in_row", "skipped_total")] == [1, 1, 1]
    state, metrics = run.dispatch(state, run.batches(2), run.step_key)
    assert [float(metrics[name][0]) for name in ("skipped", "skipped_in_row", "skipped_total")] == [0, 0, 1]
    assert not same_trees(after.params, jax.device_get(state.params))


@pytest.mark.slow
def test_gradients_whose_squares_overflow_are_skipped():
    run = single(**{"optimizer.clip_norm": None})
    state = create_state(run.build_state, run.mesh)
    batch = jax.device_get(run.batches(0))
    batch["image"] = batch["image"] * np.float32(1e20)
    state, metrics = run.dispatch(state, place_all(run.mesh, batch), run.step_key)
    assert metrics["skipped"][0] == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get((state.params, state.opt_state))))


@pytest.mark.slow
def test_clipping_bounds_the_update_but_not_the_reported_norm():
    free = {
        "optimizer.name": "adam",
        "optimizer.eps": 1e6,
        "optimizer.schedule": "constant",
        "optimizer.warmup_steps": 0,
    }
    moved = {}
    for clip in (1e-3, 2e-3):
        run = single(**free, **{"optimizer.clip_norm": clip})
        start = create_state(run.build_state, run.mesh)
        before = jax.device_get(start.params)
        state, metrics = run.dispatch(start, run.batches(0), run.step_key)
        assert metrics["grad_norm"][0] > 0.1
        moved[clip] = optax.tree.norm(jax.tree.map(lambda a, b: a - b, jax.device_get(state.params), before))
    assert np.isclose(moved[2e-3] / moved[1e-3], 2, rtol=1e-2)  # at eps ≫ |g|, Adam's step is proportional to g


@pytest.mark.slow
def test_training_moves_the_loss_towards_that_of_the_exact_scores():
    config = mixture_config(**{"train.batch_size": 64, "model.width": 64, "train.steps_per_dispatch": 10})
    _, m = advance(Run(config), 40)
    assert m["loss"][-100:].mean() < 0.6 * m["loss"][:20].mean()


def test_sharding_rule_splits_the_largest_axis_that_divides():
    mesh = make_mesh(data=2, fsdp=4)
    shapes = [(1024, 64), (63, 1024), (4, 4), (333, 335)]
    specs = [parameter_sharding(mesh, jax.ShapeDtypeStruct(shape, np.float32)).spec for shape in shapes]
    assert [tuple(spec) for spec in specs] == [("fsdp",), (None, "fsdp"), (), ()]
