"""Measures evaluation: images/s of generation and of each feature network, and the seconds of each metric.

python benchmarks/evaluation.py --num_steps=8 --json=evaluation.json
python benchmarks/evaluation.py --parts=networks --networks=inception --network_batch_sizes=16,32,64,128 --repeats=3
python benchmarks/evaluation.py --parts=metrics --num_samples=10000 --num_features=64,2048
"""

import dataclasses
import functools
import statistics
import sys
import tempfile
import time

import harness
import sampling
from absl import flags

from cfgjax.base.errors import UsageError, choose
from cfgjax.cli.common import numbers

RESIDENT = {"resident MB": lambda f: harness.megabytes(f["resident_bytes"])}


def generation(given):
    """Returns the figures of `draw_samples` at one weight, with fresh parameters and the batches of an evaluation."""
    import numpy as np

    from cfgjax.diffusion.guidance import cfg, conditional
    from cfgjax.evaluation.frontier.generate import draw_samples

    config = harness.load_config(given.configs[0], dtype=given.dtype)
    (weight,) = numbers("guidance", given.guidance, float)
    model = sampling.fresh_model(config)
    batch = given.batch_size or config.evaluate.batch_size
    batch += -batch % model.mesh.size
    chosen = dict(num_steps=given.num_steps, rule=cfg() if weight else conditional())
    program, compile_seconds, flops = sampling.compile_sampler(model, batch, **chosen)
    options = dataclasses.replace(model.options, guidance=weight, **chosen)
    index = np.arange(batch * given.num_batches)
    draw = lambda: [samples for _, _, samples in draw_samples(model, options, index, batch // model.mesh.size)]
    seconds = harness.time_repeats(draw, given.repeats)
    shared = harness.figures(program, compile_seconds, seconds, len(index), flops)
    about = {"config": given.configs[0], "guidance_weight": weight, "batch_size": batch, "dtype": config.model.dtype}
    calls = given.num_steps * shared["images_per_second"]
    return [about | {"num_steps": given.num_steps, "image_calls_per_second": calls} | shared]


GENERATION_COLUMNS = {
    "configuration": lambda f: f["config"],
    "w": lambda f: f"{f['guidance_weight']:g}",
    "batch": lambda f: str(f["batch_size"]),
    "dtype": lambda f: f["dtype"],
    "num_steps": lambda f: str(f["num_steps"]),
    "images/s × T": lambda f: f"{f['image_calls_per_second']:.4g}",
    **harness.COLUMNS,
}


def make_classifier(experiment):
    """Returns the feature network of a classifier's experiment with fresh parameters, and its image shape."""
    import jax

    from cfgjax.evaluation.features.networks import classifier_features
    from cfgjax.models.network import init_params, make_network
    from cfgjax.runs.config import load_file
    from cfgjax.runs.settings import Settings

    settings = Settings.from_config(load_file(harness.EXPERIMENTS / f"{experiment}.py"))
    shape = settings.data.image_shape
    return classifier_features(settings, init_params(make_network(settings), jax.random.key(0), shape)), shape


def make_inception():
    """Returns FID's Inception with random weights, scaled so that activations stay of order 1."""
    import numpy as np

    from cfgjax.evaluation.features.networks import load_inception
    from cfgjax.nets.inception import shapes

    rng, constant = np.random.default_rng(0), {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
    draw = lambda shape: rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / np.prod(shape[1:])))
    fill = lambda key, shape: np.full(shape, constant[key.rpartition(".")[2]], np.float32)
    weights = {key: draw(shape) if len(shape) > 1 else fill(key, shape) for key, shape in shapes().items()}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/inception.npz", **weights)
        return load_inception(f"{folder}/inception.npz"), (32, 32, 3)


# name: (function that returns (network, image shape), default of --num_images)
NETWORKS = {
    "classifier": (lambda: make_classifier("digits_classifier"), 2048),
    "inception": (make_inception, 128),
    "cifar10_classifier": (lambda: make_classifier("cifar10_classifier"), 2048),
}


def networks(given):
    """Returns the figures of a feature network at each batch size. The sizes take turns, so that load affects all."""
    import numpy as np

    make, num_images = NETWORKS[given.networks[0]]
    sizes, num_images = batch_sizes(given), given.num_images or num_images
    network, image_shape = make()
    images = np.random.default_rng(0).integers(0, 256, (num_images, *image_shape), np.uint8)

    def seconds(size, images):
        network.batch_size = size
        start = time.perf_counter()
        network(images)
        return time.perf_counter() - start

    first = {n: {"first_seconds": seconds(n, images[:n]), "resident_bytes": harness.resident_bytes()} for n in sizes}
    rounds = [{size: seconds(size, images) for size in sizes} for _ in range(given.repeats)]
    rates = {size: harness.rate_figures(num_images, [one[size] for one in rounds]) for size in sizes}
    best = max(rate["images_per_second"] for rate in rates.values())
    about = {"network": given.networks[0], "image_shape": image_shape, "num_images": num_images}
    share = lambda size: {"batch_size": size, "share_of_best": rates[size]["images_per_second"] / best}
    return [about | share(size) | rates[size] | first[size] for size in sizes]


def network_cases(given):
    """Returns a case for each network, with all batch sizes."""
    batch_sizes(given)
    return harness.product(given, "networks")


def batch_sizes(given):
    """Returns --network_batch_sizes in ascending order, so that peak memory is that of the largest size so far."""
    sizes = sorted(numbers("network_batch_sizes", given.network_batch_sizes, int))
    for name in given.networks:
        num_images = given.num_images or choose("network", name, NETWORKS)[1]
        for size in sizes:
            if size < 1 or num_images % size:
                raise UsageError(f"{num_images} images are not whole batches of {size}; give another --num_images")
    return sizes


NETWORK_COLUMNS = {
    "network": lambda f: f["network"],
    "image": lambda f: "×".join(map(str, f["image_shape"])),
    "images": lambda f: str(f["num_images"]),
    "batch": lambda f: str(f["batch_size"]),
    **harness.RATE_COLUMNS,
    "of the best": lambda f: f"{f['share_of_best']:.0%}",
    "first s": lambda f: f"{f['first_seconds']:.1f}",
    **RESIDENT,
}


def moments(draw, num_samples, size):
    """Adds all samples to `Moments`, in the blocks of an evaluation."""
    from cfgjax.evaluation.metrics.scores import Moments
    from cfgjax.evaluation.metrics.sums import BLOCK

    features = draw(num_samples, size)

    def run():
        sums = Moments.zeros(size)
        for start in range(0, num_samples, BLOCK):
            sums.update(features[start : start + BLOCK])
        return sums

    return run


def frechet(draw, num_samples, size, *, root_given=False):
    """Computes only `frechet_distance`. The root of the reference's covariance is given or computed."""
    from cfgjax.evaluation.metrics.scores import frechet_distance, matrix_sqrt

    x, y = (moments(draw, num_samples, size)() for _ in range(2))
    gaussians, root = (x.mean, x.cov, y.mean, y.cov), matrix_sqrt(x.cov) if root_given else None
    return lambda: frechet_distance(*gaussians, sqrt1=root)


def inception_score(draw, num_samples, size):
    """Computes `inception_score` in ten splits, with as many logits as a network with that many features has."""
    from cfgjax.evaluation.metrics.scores import inception_score

    logits = draw(num_samples, num_logits(size))
    return lambda: inception_score(logits)


def num_logits(size):
    """Returns the number of logits K: that of Inception for its 2048 features, otherwise 10."""
    from cfgjax.nets.inception import CLASSES, POOL3

    return CLASSES if size == POOL3 else 10


def kid(draw, num_samples, size):
    """Computes `kernel_distance` to an equal number of reference samples."""
    from cfgjax.evaluation.metrics.scores import kernel_distance

    reference, generated = draw(num_samples, size), draw(num_samples, size)
    return lambda: kernel_distance(reference, generated)


def precision_recall(draw, num_samples, size):
    """Computes `precision_recall` with an equal number of reference samples, whose radii are given."""
    from cfgjax.evaluation.metrics.manifold import neighbour_radii, precision_recall

    reference, generated = draw(num_samples, size), draw(num_samples, size)
    radii = neighbour_radii(reference)
    return lambda: precision_recall(reference, generated, reference_radii=radii)


def knn_entropy(draw, num_samples, size):
    """`knn_entropy` of points."""
    from cfgjax.evaluation.metrics.manifold import knn_entropy

    points = draw(num_samples, size)
    return lambda: knn_entropy(points)


METRICS = {
    "moments": moments,
    "frechet": frechet,
    "frechet_given_root": functools.partial(frechet, root_given=True),
    "inception_score": inception_score,
    "kid": kid,
    "precision_recall": precision_recall,
}
POINT_METRICS = {"knn_entropy": knn_entropy}  # for points in the plane, whatever --num_features


def metrics(given):
    """Returns the figures of one metric at one number of features, on Gaussian samples."""
    import numpy as np

    (name,), (size,) = given.metrics, numbers("num_features", given.num_features, int)
    rng = np.random.default_rng(0)
    draw = lambda rows, columns: rng.standard_normal((rows, columns), np.float32)
    run = (METRICS | POINT_METRICS)[name](draw, given.num_samples, size)
    seconds = harness.time_repeats(run, given.repeats)
    about = {"metric": name, "num_samples": given.num_samples, "num_features": size}
    about |= {"num_logits": num_logits(size) if name == "inception_score" else None, "repeat_seconds": seconds}
    return [about | {"seconds": statistics.median(seconds), "resident_bytes": harness.resident_bytes()}]


def metric_cases(given):
    """Returns a case for every metric and number of features, and one for each metric of points."""
    for name in given.metrics:
        choose("metric", name, METRICS | POINT_METRICS)
    sizes = numbers("num_features", given.num_features, int)
    pairs = [(name, size) for size in sizes for name in given.metrics if name in METRICS]
    pairs += [(name, 2) for name in given.metrics if name in POINT_METRICS]
    return [[f"--metrics={name}", f"--num_features={size}"] for name, size in pairs]


METRIC_COLUMNS = {
    f"{'metric':>18}": lambda f: f["metric"],
    "N": lambda f: str(f["num_samples"]),
    "D": lambda f: str(f["num_features"]),
    "K": lambda f: "-" if f["num_logits"] is None else str(f["num_logits"]),
    "s": lambda f: f"{f['seconds']:.3g}",
    "s min–max": lambda f: f"{min(f['repeat_seconds']):.3g}–{max(f['repeat_seconds']):.3g}",
    **RESIDENT,
}


def of_part(name, cases):
    """Returns the cases if --parts has the part called name, otherwise none."""

    def chosen(given):
        for part in given.parts:
            choose("part", part, TABLES)
        return cases(given) if name in given.parts else []

    return chosen


TABLES = {
    "generation": (lambda given: harness.product(given, "configs", "guidance"), generation, GENERATION_COLUMNS),
    "networks": (network_cases, networks, NETWORK_COLUMNS),
    "metrics": (metric_cases, metrics, METRIC_COLUMNS),
}


def main(argv):
    """Runs `evaluation.py FLAGS`. Returns the exit code."""
    given = flags.FlagValues()
    listed = lambda name, default, about: flags.DEFINE_list(name, default, about, flag_values=given)
    count = lambda name, default, what, least=1: flags.DEFINE_integer(name, default, what, least, flag_values=given)
    listed("parts", list(TABLES), f"Parts to measure: {', '.join(TABLES)}.")
    listed("guidance", ["0", "1"], "Weights w of generation; at 0 the unconditional branch is left out.")
    count("num_steps", 8, "Number of network calls T of generation.", 2)
    count("num_batches", 2, "Number of batches in a repeat of generation.")
    listed("networks", ["classifier", "inception"], f"Feature networks to measure: {', '.join(NETWORKS)}.")
    listed("network_batch_sizes", ["16", "32", "64", "128"], "Batch sizes of the feature networks.")
    count("num_images", None, "Number of images in a repeat of a feature network; by default 2048, for Inception 128.")
    listed("metrics", list(METRICS | POINT_METRICS), f"Metrics to measure: {', '.join(METRICS | POINT_METRICS)}.")
    count("num_samples", 10_000, "Number of samples N for the metrics.", 10)
    listed("num_features", ["64", "2048"], "Numbers of features D for the metrics.")
    tables = {name: harness.Table(of_part(name, cases), *rest) for name, (cases, *rest) in TABLES.items()}
    return harness.main(argv, __doc__, given, tables, configs=["digits"])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
