"""Input and checkpoints: whether making batches keeps up with the step, and what saving costs the training loop.

python benchmarks/input.py --configs=digits,cifar10,imagenet64,imagenet128 --repeats=5 --json=input.json
"""

import statistics
import sys
import tempfile
import time

import harness
from absl import flags
from train_step import make_data_random

H100_FLOPS = 989e12  # dense bfloat16, NVIDIA's data sheet: no step on that device takes images faster than this allows
SMALL = 2e9  # FLOPs per image of a step that can be timed on the CPU
rate = lambda images: "-" if images is None else f"{images:,.0f}"
COLUMNS = {
    "configuration": lambda f: f["config"],
    "batch": lambda f: str(f["batch_size"]),
    "flip": lambda f: str(f["random_flip"]),
    "images/s made": lambda f: f"{f['images_per_second']:,.0f}",
    "min–max": lambda f: f"{f['images_per_second_min']:,.0f}–{f['images_per_second_max']:,.0f}",
    "step's images/s here": lambda f: rate(f["step_images_per_second"]),
    "with input": lambda f: rate(f["live_images_per_second"]),
    "an H100 at most": lambda f: rate(f["h100_images_per_second"]),
    "made / taken": lambda f: (
        f"{f['images_per_second'] / (f['step_images_per_second'] or f['h100_images_per_second']):.3g}"
    ),
}


def measure(config, given):
    """Figures of making the batches of a config from random uint8 images in memory, and of the step beside it.

    images_per_second: of `Run.batches`, gathering, converting, flipping and placing. step_images_per_second: of the
    step with one batch again and again, live_images_per_second: with a new batch for each dispatch, as in training;
    None where the network is too large to be timed here. h100_images_per_second: what an H100 at its peak would take.
    """
    import jax

    from cfgjax.training.loop import Run
    from cfgjax.training.state import create_state

    k, size = config.train.steps_per_dispatch, config.train.batch_size
    cadences = ["train.num_steps", "train.log_every_steps", "checkpoint.every_steps", "sample.every_steps"]
    config.update_from_flattened_dict(dict.fromkeys(cadences, k))
    flip = config.data.get("random_flip", False)
    with tempfile.TemporaryDirectory() as folder:
        make_data_random(config, max(given.num_examples, size), f"{folder}/random.npz")
        config.data.random_flip = flip
        run = Run(config)
    step, count = iter(range(10**9)), max(1, given.images_per_repeat // (k * size))
    made = harness.time_repeats(lambda: [run.batches(next(step) * k) for _ in range(count)][-1], given.repeats)
    rates = harness.rate_figures(count * k * size, made)
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype, sharding=a.sharding), run.batches(0))
    flops = run.dispatch.lower(run.like, one, run.step_key).cost_analysis()["flops"] / size
    found: dict = {"random_flip": flip, "step_images_per_second": None, "live_images_per_second": None}
    if flops < SMALL:
        state, batches = create_state(run.build_state, run.mesh), run.batches(0)
        dispatch = run.dispatch.lower(state, batches, run.step_key).compile()
        seconds: dict = {"step_images_per_second": [], "live_images_per_second": []}
        for repeat in range(given.repeats + 1):
            for name, live in zip(seconds, (False, True), strict=True):
                start = time.perf_counter()
                for i in range(given.dispatches):
                    state, _ = dispatch(state, run.batches((repeat + i) * k) if live else batches, run.step_key)
                jax.block_until_ready(state)
                seconds[name].append(time.perf_counter() - start)
        images = given.dispatches * k * size
        found |= {name: images / statistics.median(times[1:]) for name, times in seconds.items()}
    return found | rates | {"flops_per_image": flops, "h100_images_per_second": H100_FLOPS / flops}


SAVING_COLUMNS = {
    "state MB": lambda f: f"{f['state_bytes'] / 1e6:,.0f}",
    "s to write": lambda f: f"{f['write_seconds']:.2f}",
    "s training waits": lambda f: f"{f['blocked_seconds']:.3f}",
    "share": lambda f: f"{f['blocked_seconds'] / f['write_seconds']:.1%}",
}


def saving(given):
    """Rows of checkpoints of several sizes: seconds until a step is whole, and those in which the loop is held up."""
    import jax.numpy as jnp
    import numpy as np

    from cfgjax.training.checkpoint import Cadence, Checkpoints
    from cfgjax.training.state import TrainState

    rows = []
    for megabytes in map(int, given.megabytes):
        arrays = [np.random.default_rng(i).standard_normal(megabytes * 25_000, np.float32) for i in range(10)]
        state = TrainState(jnp.int32(0), [jnp.asarray(array) for array in arrays], {}, ())
        written, blocked = [], []
        with (
            tempfile.TemporaryDirectory(dir=given.folder) as folder,
            Checkpoints(f"{folder}/checkpoints", Cadence(1, keep_last=2)) as checkpoints,
        ):
            for step in range(given.repeats + 1):
                start = time.perf_counter()
                checkpoints.save(step, state, [])
                blocked.append(time.perf_counter() - start)
                checkpoints.wait()
                written.append(checkpoints.seconds)
        medians = {"write_seconds": statistics.median(written[1:]), "blocked_seconds": statistics.median(blocked[1:])}
        rows.append({"state_bytes": megabytes * 1_000_000, **medians})
    return rows


def main(argv):
    """The exit code of `input.py FLAGS`."""
    given = flags.FlagValues()
    whole = lambda name, default, what: flags.DEFINE_integer(name, default, what, flag_values=given, lower_bound=1)
    whole("num_examples", 4096, "Random images to draw from.")
    whole("images_per_repeat", 4096, "Images made in one timed repeat, in whole dispatches.")
    whole("dispatches", 5, "Dispatches in one timed repeat of the step.")
    flags.DEFINE_list("megabytes", ["100", "400"], "Sizes of checkpoints; empty for none.", flag_values=given)
    flags.DEFINE_string("folder", None, "Where checkpoints are written.", flag_values=given)
    sizes = harness.Table(lambda given: [[]] if given.megabytes else [], saving, SAVING_COLUMNS)
    tables = {"input": harness.per_config((), COLUMNS, measure, shared=False), "saving": sizes}
    return harness.main(argv, __doc__, given, tables, ["digits", "cifar10", "imagenet64", "imagenet128"])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
