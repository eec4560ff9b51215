"""Measures training: images/s, compile seconds, peak memory and FLOPs per image of the optimizer step.

python benchmarks/train_step.py --configs=digits,small8 --repeats=5 --json=train.json
python benchmarks/train_step.py --configs=small32 --parametrisations=eps,x,v,flow,edm
"""

import sys
import tempfile
import time

import harness
from absl import flags

from cfgjax.base.compilation import clearing_seconds, compile_in_blocks
from cfgjax.base.errors import UsageError
from cfgjax.base.freed_memory import keep_freed_memory
from cfgjax.distributed.cpu_devices import use_cores

COLUMNS = {
    "configuration": lambda f: f["config"],
    "predicts": lambda f: f["parametrisation"],
    "parameters": lambda f: f"{f['parameters']:,}",
    "batch": lambda f: str(f["batch_size"]),
    "dtype": lambda f: f["dtype"],
    "steps/dispatch": lambda f: str(f["steps_per_dispatch"]),
    "ms/step": lambda f: f"{f['ms_per_step']:.1f}",
}


def measure(config, given):
    """Returns the figures of the dispatch that training compiles for config, on random images on the devices."""
    import jax

    from cfgjax.jobs.preflight.step_figures import flops_per_image

    k = given.steps_per_dispatch or config.train.steps_per_dispatch
    steps = given.steps_per_repeat or -(-10 // k) * k
    if steps % k:
        raise UsageError(f"--steps_per_repeat={steps} is not a multiple of {k} steps per dispatch")
    run, state, batches = open_step(config, k)
    dispatch, compile_seconds = compile_step(run, state, batches)

    def repeat():
        nonlocal state
        for _ in range(steps // k):
            state, metrics = dispatch(state, batches, run.step_key)
        return state, metrics

    seconds = harness.time_repeats(repeat, given.repeats)
    flops = flops_per_image(config)
    shared = harness.figures(dispatch, compile_seconds, seconds, steps * config.train.batch_size, flops["step"])
    return {
        "parametrisation": config.diffusion.parametrisation,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "steps_per_dispatch": k,
        "steps_per_repeat": steps,
        "forward_flops_per_image": flops["forward"],
        "ms_per_step": 1000 * config.train.batch_size / shared["images_per_second"],
        **shared,
    }


def open_step(config, steps_per_dispatch):
    """Returns (`Run` of config on random images, its state, batches of one dispatch), on the devices of training."""
    from cfgjax.training.loop import Run
    from cfgjax.training.state import create_state

    use_cores()
    k = steps_per_dispatch
    cadences = ["train.num_steps", "train.log_every_steps", "checkpoint.every_steps", "sample.every_steps"]
    config.update_from_flattened_dict({"train.steps_per_dispatch": k} | dict.fromkeys(cadences, k))
    with tempfile.TemporaryDirectory() as folder:
        make_data_random(config, k * config.train.batch_size, f"{folder}/random.npz")
        run = Run(config)
    return run, create_state(run.build_state, run.mesh), run.batches(0)


def compile_step(run, state, batches):
    """Returns (compiled dispatch, seconds of compilation), after which memory is kept as in a long training."""
    start = time.perf_counter()
    lowered = run.dispatch.lower(state, batches, run.step_key)
    dispatch = lowered.compile()
    if clearing_seconds(dispatch, calls=1):
        dispatch = compile_in_blocks(lowered)
    seconds = time.perf_counter() - start
    keep_freed_memory()
    return dispatch, seconds


def make_data_random(config, num_examples, path):
    """Writes random images and labels of config.data's shape to path, and sets config.data to read them."""
    import numpy as np

    rng, data = np.random.default_rng(0), config.data
    image = rng.integers(0, 256, (num_examples, *data.image_shape), np.uint8)
    label = rng.integers(0, data.num_classes, num_examples, np.int32)
    np.savez(path, image=image, label=label)
    kept = {"num_classes": data.num_classes, "image_shape": data.image_shape}
    config.data = type(data)({"source": "npz", "path": path, **kept})


def measure_prediction(config, given):
    """Returns the figures of config with the parametrisation of the flags."""
    config.diffusion.parametrisation = given.parametrisations[0]
    return measure(config, given)


def main(argv):
    """Runs `train_step.py FLAGS`. Returns the exit code."""
    given = flags.FlagValues()
    flags.DEFINE_integer(
        "steps_per_repeat", None, "Steps in one timed repeat; by default 10, rounded up to complete dispatches.",
        flag_values=given, lower_bound=1,
    )  # fmt: skip
    flags.DEFINE_integer(
        "steps_per_dispatch",
        None,
        "Steps per dispatch, instead of train.steps_per_dispatch.",
        flag_values=given,
        lower_bound=1,
    )
    flags.DEFINE_list("parametrisations", ["eps"], "Predictions of the network, such as eps,v,edm.", flag_values=given)
    table = harness.per_config(("parametrisations",), COLUMNS, measure_prediction)
    return harness.main(argv, __doc__, given, {"training": table})


if __name__ == "__main__":
    sys.exit(main(sys.argv))
