"""Measures sampling: images/s, ms per network call, compile seconds, peak memory and FLOPs per image, with guidance.

python benchmarks/sampling.py --configs=digits,small8 --samplers=ddim --num_steps=64 --json=sampling.json

Then measures the overhead of guidance over the network evaluations that it needs, with networks of a fixed cost.
"""

import dataclasses
import functools
import statistics
import sys

import harness
from absl import flags

from cfgjax.distributed.cpu_devices import devices_of_batch, use_cores
from cfgjax.runs.settings import Settings

COLUMNS = {
    "configuration": lambda f: f["config"],
    "sampler": lambda f: f["sampler"],
    "batch": lambda f: str(f["batch_size"]),
    "dtype": lambda f: f["dtype"],
    "num_steps": lambda f: str(f["num_steps"]),
    "ms/call": lambda f: f"{f['ms_per_network_call']:.1f}",
}


def fresh_model(config):
    """Returns the `Model` of config on the config's mesh, with fresh parameters."""
    import jax

    from cfgjax.distributed.sharding import make_mesh, replicated
    from cfgjax.models.model import Model
    from cfgjax.models.network import init_params, make_network

    use_cores()
    settings = Settings.from_config(config)
    mesh = make_mesh(**dataclasses.asdict(settings.mesh), devices=devices_of_batch(settings.train.batch_size))
    init = lambda: init_params(make_network(settings), jax.random.key(0), settings.data.image_shape)
    return Model(settings, jax.jit(init, out_shardings=replicated(mesh))(), mesh=mesh)


def compile_sampler(model, batch_size, *, num_steps, rule=None, **options):
    """Returns (program, compile seconds, network FLOPs per image) of `Model.sampler`, which then runs this program.

    Uses a private name, because the sampler that `Model` returns reports neither its compile time nor its memory.
    """
    import jax
    import numpy as np

    from cfgjax.diffusion.guidance import conditional

    index, jitted = np.arange(batch_size), model._sample
    draw = model.sampler(num_steps=num_steps, rule=rule, **options)
    model._sample = lambda *arguments, **static: (arguments, static)  # records the call instead of running it
    arguments, static = draw(index, index % model.num_classes, np.ones(batch_size))
    program, compile_seconds = harness.compile_timed(jitted, *arguments, **static)
    model._sample = lambda *arguments, **static: program(*arguments)

    evaluated = (1 if rule == conditional() else 2) * batch_size
    inputs = [((evaluated, *model.image_shape), np.float32), ((evaluated,), np.float32), ((evaluated,), np.int32)]
    forward = jax.jit(lambda params, z, logsnr, label: model.bind(params)(z, logsnr, {"label": label}))
    params = jax.eval_shape(lambda: model.params)
    with jax.default_device(jax.devices("cpu")[0]):  # clients of accelerators do not count FLOPs
        lowered = forward.lower(params, *[jax.ShapeDtypeStruct(*of) for of in inputs])
    return program, compile_seconds, num_steps * lowered.cost_analysis()["flops"] / batch_size


def measure(config, given):
    """Returns the figures of the sampler that `Model.sample` compiles for config, with fresh parameters and w = 1."""
    import jax
    import numpy as np

    from cfgjax.distributed.sharding import check_batch_size
    from cfgjax.models.binding import sampler_value

    options = {"sampler": given.samplers[0], "num_steps": given.num_steps or config.sample.num_steps}
    batch, model = config.train.batch_size, fresh_model(config)
    check_batch_size(batch, model.mesh)
    program, compile_seconds, flops = compile_sampler(model, batch, **options)
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


OVERHEAD_BATCH, OVERHEAD_STEPS, NUM_CLASSES = 8, 12, 10
# Rules of which the overhead over their evaluations is measured; a third of the levels is in the interval.
RULES = (
    "cfg()",
    "interval(low=0.3, high=0.7, unit='fraction')",
    "ramp(shape='cosine')",
    "table(logsnr=(-5, 0, 5), factor=(0.5, 1, 0.5))",
    "rescale(phi=0.7)",
    "threshold(percentile=99.5)",
    "apg(eta=0, beta=-0.5, r=10)",
    "cfg_plus_plus()",
    "cfg_zero(zero_steps=1)",
    "channels(n=2)",
    "compose(labels=(1,), scales=(0.5,))",
    "negative(label=1)",
    "autoguidance()",
    "classifier(conditional(), scale=1)",
    "classifier(conditional(), scale=1, form='z')",
)
# Rules of which the overhead over cfg is measured; they need a network with attention.
PERTURBED = ("pag()", "pag(layers='all')", "seg()", "seg(layers='all')")


def fixed_cost(key, image_shape, features, num_hidden):
    """Returns (weights, (weights, z [B, *image_shape]) → [B, features]): dense layers, none of which XLA can remove.

    They are as wide as the image has pixels. num_hidden: number of layers in the middle, which have the same weights.
    """
    import math

    import jax
    import jax.numpy as jnp

    pixels = math.prod(image_shape[:-1])
    sizes = [math.prod(image_shape), pixels, pixels, features]
    keys = jax.random.split(key, 3)
    weights = [jax.random.normal(k, (m, n)) / m**0.5 for k, m, n in zip(keys, sizes, sizes[1:], strict=False)]

    def network(weights, z):
        first, hidden, last = weights
        h = jnp.tanh(z.reshape(len(z), -1) @ first)
        h = jax.lax.fori_loop(0, num_hidden, lambda _, h: jnp.tanh(h @ hidden), h)
        return jnp.tanh(h @ last)

    return weights, network


def timed_in_turn(run, other, repeats):
    """Returns (seconds of run, seconds of other, median overhead of run). Load affects both."""
    timed = [[harness.time_repeats(one, 1)[0] for one in (run, other)] for _ in range(repeats)]
    return *zip(*timed, strict=True), statistics.median(r / o for r, o in timed) - 1


def overhead(given):
    """Returns a row for each rule: seconds of its sampler, and of bare scans of the evaluations that it needs."""
    import itertools
    import math

    import jax
    import jax.numpy as jnp

    from cfgjax.diffusion import guidance, samplers
    from cfgjax.diffusion.prediction import PARAMETRISATIONS
    from cfgjax.diffusion.schedules import logsnr_grid
    from cfgjax.diffusion.specs import parse
    from cfgjax.models.binding import filled, is_autoguided, is_classifier_guided, with_weak
    from cfgjax.runs.sample_options import split

    grid, image = logsnr_grid(OVERHEAD_STEPS), (given.image_size, given.image_size, 3)
    eps_weights, eps_net = fixed_cost(jax.random.key(0), image, math.prod(image), given.hidden_layers)
    class_weights, class_net = fixed_cost(jax.random.key(1), image, NUM_CLASSES, given.hidden_layers)
    weak_weights, _ = fixed_cost(jax.random.key(3), image, math.prod(image), given.hidden_layers)
    keys = jax.random.split(jax.random.key(2), OVERHEAD_BATCH)
    label = jnp.arange(OVERHEAD_BATCH) % NUM_CLASSES
    z = samplers.initial_noise(keys, image)

    def log_prob(weights, z, logsnr, label):
        return guidance.label_log_prob(class_net(weights, z), label)

    def bare(rule):
        """Returns the program of the evaluations of a rule, one level after the other."""
        counts = guidance.evaluations(rule, grid)

        def level(z, count, eps_weights, class_weights, weak_weights):
            if is_autoguided(rule):  # calls its two networks one after the other
                eps = (eps_net(eps_weights, z) + eps_net(weak_weights, z)).reshape(z.shape)
            else:
                eps = eps_net(eps_weights, jnp.concatenate([z] * count)).reshape(-1, *image)[: len(z)]
            if is_classifier_guided(rule):
                guide = jax.tree_util.Partial(log_prob, class_weights)
                eps = eps + guidance.score_function(guide, label)(z, 0.0)
            return 0.5 * eps

        def run(z, *weights):
            for count, group in itertools.groupby(counts):
                body = lambda z, _, count=count: (level(z, int(count), *weights), None)
                z, _ = jax.lax.scan(body, z, length=len(list(group)))
            return z

        return run

    def guided(rule, sampler):
        """Returns the program of a sampler with a rule."""

        def run(z, eps_weights, class_weights, weak_weights):
            def predict(weights, z, logsnr, label):
                return PARAMETRISATIONS["eps"](eps_net(weights, z).reshape(z.shape), z, logsnr)

            full = filled(rule, jax.tree_util.Partial(log_prob, class_weights), None)
            full = with_weak(full, jax.tree_util.Partial(predict, weak_weights))
            denoise = guidance.bind_rule(
                full, functools.partial(predict, eps_weights), label, jnp.full_like(label, NUM_CLASSES), 1.0
            )
            return samplers.sample(sampler, denoise, keys, z, grid, clip=True)

        return run

    rows = []
    for text in split(given.rules) if given.rules else RULES:
        rule = guidance.on_grid(parse(text, guidance.RULES), grid)
        rule = guidance.on_labels(rule, lambda other: jnp.broadcast_to(other, (OVERHEAD_BATCH,)))
        sampler = samplers.ddim() if "plus" in text else samplers.ancestral(0.3)
        programs = guided(rule, sampler), bare(rule)
        runs = [
            functools.partial(jax.jit(program), z, eps_weights, class_weights, weak_weights) for program in programs
        ]
        seconds, needed, ratio = timed_in_turn(*runs, given.repeats)
        rows.append({"guidance": text, "guided_seconds": seconds, "needed_seconds": needed, "overhead": ratio})
    return rows


def attention_overhead(given):
    """Returns a row for each rule with perturbed attention: seconds of its sampler, and of the sampler with cfg.

    At each level these rules evaluate the network twice, as cfg does.
    """
    import numpy as np

    config = harness.load_config(given.attention_config)
    batch, model = config.train.batch_size, fresh_model(config)
    index, levels = np.arange(batch), given.num_steps or config.sample.num_steps

    def drawn(rule):
        draw = model.sampler(num_steps=levels, rule=rule, sampler="ddim()")
        return lambda: draw(index, index % model.num_classes, np.ones(batch))

    rows, cfg = [], drawn("cfg()")
    for text in PERTURBED:
        seconds, of_cfg, ratio = timed_in_turn(drawn(text), cfg, given.repeats)
        row = {"guidance": text, "levels": levels, "seconds": seconds, "cfg_seconds": of_cfg, "overhead": ratio}
        rows.append(row)
    return rows


def overhead_columns(seconds, other, heading):
    """Returns the columns of a table of overheads. seconds, other: the two times of a row; heading: of the other."""
    ms_per_step = lambda f, name: f"{1000 * statistics.median(f[name]) / f.get('levels', OVERHEAD_STEPS):.1f}"
    return {
        f"{'guidance':>48}": lambda f: f["guidance"],
        "ms/step": lambda f: ms_per_step(f, seconds),
        heading: lambda f: ms_per_step(f, other),
        "overhead": lambda f: f"{100 * f['overhead']:+.1f} %",
    }


OVERHEAD_COLUMNS = overhead_columns("guided_seconds", "needed_seconds", "ms needed")
ATTENTION_COLUMNS = overhead_columns("seconds", "cfg_seconds", "ms of cfg")


def main(argv):
    """Runs `sampling.py FLAGS`. Returns the exit code."""
    given = flags.FlagValues()
    flags.DEFINE_list("samplers", ["ancestral(v=0.3)", "ddim()"], "Samplers to measure.", flag_values=given)
    flags.DEFINE_integer(
        "num_steps", None, "Numbers of levels T, instead of sample.num_steps.", flag_values=given, lower_bound=2
    )
    flags.DEFINE_string(
        "rules", "", "Rules of which the overhead is measured; by default one of each kind.", flag_values=given
    )
    what = "Number of hidden layers of the network of a fixed cost; each takes 0.03 GFLOP for an image, the others 0.2."
    flags.DEFINE_integer("hidden_layers", 1, what, flag_values=given, lower_bound=1)
    what = "Width and height in pixels of the images of the network of a fixed cost."
    flags.DEFINE_integer("image_size", 64, what, flag_values=given, lower_bound=1)
    flags.DEFINE_bool("overhead", True, "Measure the overhead of guidance over its evaluations.", flag_values=given)
    flags.DEFINE_string(
        "attention_config",
        "",
        "Configuration, such as small64, of which the overhead of pag and seg over cfg is measured; none by default.",
        flag_values=given,
    )
    tables = {"sampling": harness.per_config(("samplers",), COLUMNS, measure)}
    tables["overhead"] = harness.Table(lambda given: [[]] if given.overhead else [], overhead, OVERHEAD_COLUMNS)
    cases = lambda given: [[]] if given.attention_config else []
    tables["attention"] = harness.Table(cases, attention_overhead, ATTENTION_COLUMNS)
    return harness.main(argv, __doc__, given, tables)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
