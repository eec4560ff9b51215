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

    from cfgjax.diffusion.schedules import logsnr_grid
    from cfgjax.model import Model
    from cfgjax.network import init_params, make_network
    from cfgjax.sharding import check_batch_size, make_mesh, place_batch, replicated

    sampler, batch, diffusion = given.samplers[0], config.train.batch_size, config.diffusion
    num_steps = given.num_steps or config.sample.num_steps
    mesh = make_mesh(**config.mesh)
    check_batch_size(batch, mesh)
    init = lambda: init_params(make_network(config), jax.random.key(0), tuple(config.data.image_shape))
    model = Model(config, None, mesh=mesh)
    noise = model._noise_option(sampler, v=None, eta=None)
    model.params = jax.jit(init, out_shardings=replicated(mesh))()

    index = np.arange(batch, dtype=np.int32)
    requests = place_batch(mesh, (index, index % model.num_classes, np.ones(batch, np.float32)))
    grid = logsnr_grid(num_steps, diffusion.schedule, diffusion.logsnr_min, diffusion.logsnr_max).astype(np.float32)
    arguments = (model.params, jax.random.key(0), *requests, grid, noise)
    program, compile_seconds = harness.compile_timed(model._sample, *arguments, sampler=sampler)
    seconds = harness.time_repeats(lambda: program(*arguments), given.repeats)

    inputs = [((2 * batch, *model.image_shape), np.float32), ((2 * batch,), np.float32), ((2 * batch,), np.int32)]
    both = model._eps.lower(model.params, *[jax.ShapeDtypeStruct(*of) for of in inputs])  # the branches' forward
    flops = num_steps * both.cost_analysis()["flops"] / batch
    shared = harness.figures(program, compile_seconds, seconds, batch, flops)
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        "sampler": sampler,
        "num_steps": num_steps,
        "ms_per_network_call": 1000 * batch / shared["images_per_second"] / num_steps,
        **shared,
    }


def main(argv):
    """The exit code of `sampling.py FLAGS`."""
    given = flags.FlagValues()
    flags.DEFINE_list("samplers", ["ancestral", "ddim"], "Samplers to measure.", flag_values=given)
    flags.DEFINE_integer(
        "num_steps", None, "Network calls T, in place of sample.num_steps.", flag_values=given, lower_bound=2
    )
    return harness.main(argv, __doc__, given, ("samplers",), COLUMNS, measure)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
