"""Measures input and checkpoints: the rate of making batches next to that of the step, and the cost of saving.

python benchmarks/input.py --configs=digits,cifar10,imagenet64,imagenet128 --repeats=5 --json=input.json
python benchmarks/input.py --configs= --megabytes= --images=imagenet64.npz    # only prepared sets and preparing
"""

import contextlib
import functools
import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path

import harness
from absl import flags
from train_step import make_data_random

H100_FLOPS = 989e12  # dense bfloat16, from NVIDIA's data sheet: an upper bound for any step on this device
SMALL = 2e9  # maximum FLOPs per image of a step that is timed on the CPU
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
    """Returns the figures of making the batches of a config from random uint8 images in memory, and of the step.

    images_per_second: of `Run.batches`, which gathers, converts, flips and places images. step_images_per_second: of
    the step with the same batch every time. live_images_per_second: of the step with a new batch for each dispatch, as
    in training. Both are None if the network is too large to be timed here. h100_images_per_second: the bound from an
    H100's peak.
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
                    if live:
                        run.look_ahead((repeat + i + 1) * k)  # as the training loop does
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
    """Returns rows for several checkpoint sizes: seconds until a step is complete, and seconds that the loop waits."""
    import jax.numpy as jnp
    import numpy as np

    from cfgjax.runs.checkpoint import Checkpoints
    from cfgjax.runs.training_settings import CheckpointSettings
    from cfgjax.training.state import TrainState

    rows = []
    for megabytes in map(int, given.megabytes):
        arrays = [np.random.default_rng(i).standard_normal(megabytes * 25_000, np.float32) for i in range(10)]
        state = TrainState(jnp.int32(0), [jnp.asarray(array) for array in arrays], {}, ())
        written, blocked = [], []
        with (
            new_folder(given.folder) as folder,
            Checkpoints(folder / "checkpoints", CheckpointSettings(1, keep_last=2)) as checkpoints,
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


@contextlib.contextmanager
def new_folder(parent):
    """Yields a new folder in a folder or at a URL, by default in that of temporary files, and removes it."""
    from cfgjax.base import storage

    if parent is None or not storage.is_url(parent):
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            yield storage.place(folder)
        return
    folder = storage.place(parent) / f"saving-{secrets.token_hex(4)}"
    try:
        yield folder
    finally:
        storage.remove_tree(folder)


def pictures(count, height, width):
    """Returns uint8 [count, height, width, 3] of smooth colours and grain, about as hard to encode as photographs."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 12, 12, 3), np.uint8)
    smooth = [np.asarray(Image.fromarray(c).resize((width, height), Image.Resampling.BICUBIC)) for c in coarse]
    grain = rng.normal(0, 8, (count, height, width, 1)) * rng.uniform(0.5, 1.5, (count, 1, 1, 1))
    return (np.stack(smooth) + grain).clip(0, 255).astype(np.uint8)


def write_prepared(folder, encoding, images):
    """Prepares images as array_record in folder. Returns config.data for them."""
    import numpy as np

    from cfgjax.base.progress import Progress
    from cfgjax.data.prepare import Request, prepare
    from cfgjax.data.sources.arrays import Arrays

    label, (height, channels) = np.arange(len(images), dtype=np.int32) % 10, (images.shape[1], images.shape[-1])
    listing = Arrays(images, label, tuple(map(str, range(10))))
    request = Request({}, height, "adm", channels, encoding)
    bar = functools.partial(Progress, "preparing", "image", write=False)
    prepare(listing, folder, request, workers=1, max_errors=0, progress=bar)
    return {"source": "prepared", "path": folder, "num_classes": 10, "image_shape": (height, height, channels)}


PREPARED_COLUMNS = {
    "encoding": lambda f: f["encoding"],
    "workers": lambda f: str(f["num_workers"]),
    "bytes/image": lambda f: f"{f['bytes_per_image']:,.0f}",
    **harness.RATE_COLUMNS,
    "µs of this process": lambda f: f"{f['own_microseconds_per_image']:.0f}",
    "images/CPU s": lambda f: f"{f['images_per_cpu_second']:,.0f}" if f["num_workers"] == 0 else "-",
}


def prepared(given):
    """Returns rows for batches of a prepared 64×64 set (decoded, flipped, float32), one for each number of workers."""
    import numpy as np

    from cfgjax.data.pipeline import Batches
    from cfgjax.data.sources.registry import npz, open_source
    from cfgjax.runs.data_settings import DataSettings
    from cfgjax.runs.sections import read_section

    size = given.batch_size or 256
    images = pictures(given.num_examples, 64, 64) if given.images is None else npz(path=given.images)[0]
    count, rows = max(1, given.images_per_repeat // size), []
    with tempfile.TemporaryDirectory() as folder:
        data = write_prepared(folder, given.encodings[0], images)
        total = sum(path.stat().st_size for path in Path(folder).glob("*.array_record"))
        for num_workers in map(int, given.workers):
            given_data = data | {"random_flip": True, "num_workers": num_workers}
            dataset = open_source(read_section(DataSettings, "data", given_data))
            batches, step = Batches(dataset, 0, size, np.arange(size), 1), iter(range(10**9))
            for _ in range(4 * num_workers):
                batches.at(next(step))  # batches made in advance
            cpu, seconds = time.process_time(), []
            for _ in range(given.repeats):
                start = time.perf_counter()
                for _ in range(count):
                    batches.at(next(step))
                seconds.append(time.perf_counter() - start)
            cpu = (time.process_time() - cpu) / (given.repeats * count * size)
            batches.close()
            about = {"encoding": given.encodings[0], "num_workers": num_workers, "bytes_per_image": total / len(images)}
            about |= {"own_microseconds_per_image": 1e6 * cpu, "images_per_cpu_second": 1 / cpu}
            rows.append(about | harness.rate_figures(count * size, seconds))
    return rows


PREPARING_COLUMNS = {
    "crop": lambda f: f["crop"],
    "kB/JPEG": lambda f: f"{f['bytes_per_jpeg'] / 1e3:.0f}",
    "JPEGs/CPU s": lambda f: f"{f['jpegs_per_cpu_second']:,.0f}",
    "decoding alone": lambda f: f"{f['decoded_per_cpu_second']:,.0f}",
}


def preparing(given):
    """Returns a row with the rate at which one worker of cfgjax prepare makes 64×64 records of JPEGs of 500×375."""
    import io

    from PIL import Image

    from cfgjax.data.images.decoding import Converter
    from cfgjax.data.images.pixels import decode_image
    from cfgjax.data.images.records import encode_record

    jpegs = []
    for image in pictures(given.num_jpegs, 375, 500):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=95)
        jpegs.append(file.getvalue())
    crop, found = given.crops[0], []
    converter = Converter(64, crop, 3)
    for work in (decode_image, lambda jpeg: encode_record(converter(jpeg)[0], "webp")):
        rates = []
        for _ in range(given.repeats + 1):
            start = time.process_time()
            for jpeg in jpegs:
                work(jpeg)
            rates.append(len(jpegs) / (time.process_time() - start))
        found.append(statistics.median(rates[1:]))
    size = sum(map(len, jpegs)) / len(jpegs)
    rates = {"decoded_per_cpu_second": found[0], "jpegs_per_cpu_second": found[1]}
    return [{"crop": crop, "bytes_per_jpeg": size} | rates]


def main(argv):
    """Runs `input.py FLAGS`. Returns the exit code."""
    given = flags.FlagValues()
    listed = functools.partial(flags.DEFINE_list, flag_values=given)
    listed("encodings", ["webp", "png", "raw"], "Encodings of the prepared sets; empty for no such table.")
    listed("workers", ["0", "1", "2"], "Numbers of worker processes that make their batches.")
    listed("crops", ["adm", "lanczos", "area"], "Crops in preparing JPEGs; empty for no such table.")
    flags.DEFINE_string("images", None, "An .npz of 64×64 images, instead of random ones.", flag_values=given)
    whole = lambda name, default, what: flags.DEFINE_integer(name, default, what, flag_values=given, lower_bound=1)
    whole("num_examples", 4096, "Number of random images in the data set.")
    whole("images_per_repeat", 4096, "Number of images in one timed repeat, rounded to complete dispatches.")
    whole("num_jpegs", 200, "Number of JPEGs to prepare.")
    whole("dispatches", 5, "Number of dispatches in one timed repeat of the step.")
    flags.DEFINE_list("megabytes", ["100", "400"], "Sizes of checkpoints in MB; empty for none.", flag_values=given)
    flags.DEFINE_string("folder", None, "Folder for the checkpoints, which may be a URL.", flag_values=given)
    sizes = harness.Table(lambda given: [[]] if given.megabytes else [], saving, SAVING_COLUMNS)
    cases = lambda axis: lambda given: [[f"--{axis}={value}"] for value in given[axis].value]
    tables = {
        "input": harness.per_config((), COLUMNS, measure, shared=False),
        "prepared": harness.Table(cases("encodings"), prepared, PREPARED_COLUMNS),
        "preparing": harness.Table(cases("crops"), preparing, PREPARING_COLUMNS),
        "saving": sizes,
    }
    return harness.main(argv, __doc__, given, tables, ["digits", "cifar10", "imagenet64", "imagenet128"])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
