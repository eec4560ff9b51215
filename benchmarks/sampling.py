"""Measures sampling: images/s, ms per network call, compile seconds, peak memory and FLOPs per image, with guidance.

python benchmarks/sampling.py --configs=digits,small8 --samplers=ddim --num_steps=64 --json=sampling.json

Then measures the overhead of guidance over the network evaluations that it needs, with networks of a fixed cost.
"""

import functools
import statistics
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
    """Returns the figures of the sampler that `Model.sample` compiles for config, with fresh parameters and w = 1."""
    import jax
    import numpy as np

    from cfgjax.distributed.sharding import check_batch_size
    from cfgjax.models.binding import sampler_value

    options = {"sampler": given.samplers[0], "num_steps": given.num_steps or config.sample.num_steps}
    batch, model = config.train.batch_size, harness.fresh_model(config)
    check_batch_size(batch, model.mesh)
    program, compile_seconds, flops = harness.compile_sampler(model, batch, **options)
    evaluations = sampler_value(given.samplers[0]).evaluations(options["num_steps"])
    draw, index = model.sampler(**options), np.arange(batch)
    seconds = harness.time_repeats(lambda: draw(index, index % model.num_classes, np.ones(batch)), given.repeats)
    shared = harness.figures(program, compile_seconds, seconds, batch, flops)
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        **options,
        "ms_per_network_call": 1000 * batch / shared["images_per_second"] / evaluations,
        **shared,
    }


WIDTH, LAYERS, NUM_CLASSES = 3072, 3, 10  # networks of a fixed cost: dense layers on 32×32×3 pixels
OVERHEAD_BATCH, OVERHEAD_STEPS = 8, 12


def fixed_cost(key, features):
    """Returns z [B, 32, 32, 3] → [B, features] of LAYERS dense layers, none of which XLA can remove."""
    import jax
    import jax.numpy as jnp

    weights = jax.random.normal(key, (LAYERS, WIDTH, WIDTH)) / WIDTH**0.5

    def network(weights, z):
        h = z.reshape(len(z), -1)
        for layer in weights:
            h = jnp.tanh(h @ layer)
        return h[:, :features]

    return weights, network


def overhead(given):
    """Returns rows of the guided samplers: their seconds, and those of a bare scan of the evaluations that they need.

    The two are timed in turn, so that load affects both.
    """
    import jax
    import jax.numpy as jnp

    from cfgjax.diffusion import guidance, samplers
    from cfgjax.diffusion.prediction import PARAMETRISATIONS
    from cfgjax.diffusion.schedules import logsnr_grid

    batch, grid = OVERHEAD_BATCH, logsnr_grid(OVERHEAD_STEPS)
    eps_weights, eps_net = fixed_cost(jax.random.key(0), WIDTH)
    class_weights, class_net = fixed_cost(jax.random.key(1), NUM_CLASSES)
    keys, label = jax.random.split(jax.random.key(2), batch), jnp.arange(batch) % NUM_CLASSES
    z = samplers.initial_noise(keys, (32, 32, 3))
    eps_fn = lambda weights: lambda z, logsnr, label: eps_net(weights, z).reshape(z.shape)
    predict = lambda weights: (
        lambda z, logsnr, label: PARAMETRISATIONS["eps"](eps_fn(weights)(z, logsnr, label), z, logsnr)
    )
    log_prob = lambda weights, z, logsnr, label: guidance.label_log_prob(class_net(weights, z), label)
    guide_of = lambda weights: jax.tree_util.Partial(log_prob, weights)
    score = lambda weights: guidance.score_function(guide_of(weights), label)

    def bare(evaluate):
        """Runs T evaluations, one after the other."""
        return lambda z, *weights: jax.lax.scan(lambda z, _: (0.5 * evaluate(z, *weights), None), z, grid)[0]

    def run(rule, z, eps_weights):
        denoise = rule(predict(eps_weights), label, jnp.full_like(label, NUM_CLASSES), 1.0)
        return samplers.sample(samplers.ancestral(0.3), denoise, keys, z, grid, clip=True)

    def classifier_free(z, eps_weights, class_weights):
        return run(guidance.cfg(), z, eps_weights)

    def by_gradient(z, eps_weights, class_weights):
        return run(guidance.classifier(guidance.conditional(), 1.0, "eps", guide_of(class_weights)), z, eps_weights)

    def by_shift(z, eps_weights, class_weights):
        return run(guidance.classifier(guidance.conditional(), 1.0, "z", guide_of(class_weights)), z, eps_weights)

    twice = lambda z: jnp.concatenate([z, z])
    both = lambda z, eps, classes: eps_fn(eps)(twice(z), 0, label)[: len(z)]
    one_and_gradient = lambda z, eps, classes: eps_fn(eps)(z, 0, label) + score(classes)(z, 0.0)
    cases = {
        "classifier-free": (classifier_free, bare(both)),
        "classifier, in ε": (by_gradient, bare(one_and_gradient)),
        "classifier, in the mean": (by_shift, bare(one_and_gradient)),
    }
    rows = []
    for name, programs in cases.items():
        runs = [functools.partial(jax.jit(program), z, eps_weights, class_weights) for program in programs]
        timed = [[harness.time_repeats(run, 1)[0] for run in runs] for _ in range(given.repeats)]
        guided, needed = zip(*timed, strict=True)
        ratio = statistics.median(g / n for g, n in timed) - 1
        rows.append({"guidance": name, "guided_seconds": guided, "needed_seconds": needed, "overhead": ratio})
    return rows


OVERHEAD_COLUMNS = {
    f"{'guidance':>24}": lambda f: f["guidance"],
    "ms/step": lambda f: f"{1000 * statistics.median(f['guided_seconds']) / OVERHEAD_STEPS:.1f}",
    "ms needed": lambda f: f"{1000 * statistics.median(f['needed_seconds']) / OVERHEAD_STEPS:.1f}",
    "overhead": lambda f: f"{100 * f['overhead']:+.1f} %",
}


def main(argv):
    """Runs `sampling.py FLAGS`. Returns the exit code."""
    given = flags.FlagValues()
    flags.DEFINE_list("samplers", ["ancestral(v=0.3)", "ddim()"], "Samplers to measure.", flag_values=given)
    flags.DEFINE_integer(
        "num_steps", None, "Numbers of levels T, instead of sample.num_steps.", flag_values=given, lower_bound=2
    )
    flags.DEFINE_bool("overhead", True, "Measure the overhead of guidance over its evaluations.", flag_values=given)
    tables = {"sampling": harness.per_config(("samplers",), COLUMNS, measure)}
    tables["overhead"] = harness.Table(lambda given: [[]] if given.overhead else [], overhead, OVERHEAD_COLUMNS)
    return harness.main(argv, __doc__, given, tables)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
