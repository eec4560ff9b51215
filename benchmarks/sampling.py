"""Sampling speed: images/s, ms per network call, compile seconds, peak memory and FLOPs per image, with guidance.

python benchmarks/sampling.py --configs=digits,small8 --samplers=ancestral,ddim --num_steps=64 --json=sampling.json
"""

import sys

import harness
from absl import flags

COLUMNS = {
    "configuration": lambda f: f["config"],
    "sampler": lambda f: f["sampler"],
    "batch": lambda f: str(f["batch_size"]),
    "dtype": lambda f: f["dtype"],
    "num_steps": lambda f: str(f["num_steps"]),
    "ms/call": lambda f: f"{f['ms_per_network_call']:.1f}",
}


def measure(config, given):
    """Figures of the sampler that `Model.sample` compiles for config, with fresh parameters and w = 1."""
    import jax
    import numpy as np

    from cfgjax.sharding import check_batch_size

    options = {"sampler": given.samplers[0], "num_steps": given.num_steps or config.sample.num_steps}
    batch, model = config.train.batch_size, harness.fresh_model(config)
    check_batch_size(batch, model.mesh)
    program, compile_seconds, flops = harness.compile_sampler(model, batch, **options)
    draw, index = model.sampler(**options), np.arange(batch)
    seconds = harness.time_repeats(lambda: draw(index, index % model.num_classes, np.ones(batch)), given.repeats)
    shared = harness.figures(program, compile_seconds, seconds, batch, flops)
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        **options,
        "ms_per_network_call": 1000 * batch / shared["images_per_second"] / options["num_steps"],
        **shared,
    }


def main(argv):
    """The exit code of `sampling.py FLAGS`."""
    given = flags.FlagValues()
    flags.DEFINE_list("samplers", ["ancestral", "ddim"], "Samplers to measure.", flag_values=given)
    flags.DEFINE_integer(
        "num_steps", None, "Network calls T, in place of sample.num_steps.", flag_values=given, lower_bound=2
    )
    return harness.main(argv, __doc__, given, {"sampling": harness.per_config(("samplers",), COLUMNS, measure)})


if __name__ == "__main__":
    sys.exit(main(sys.argv))
