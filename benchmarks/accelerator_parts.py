"""The measurements of `accelerator.py`: command lines of other benchmarks, in the order in which they are made."""

import dataclasses
from collections.abc import Mapping

INTERVAL = "interval(low=0.3, high=0.7, unit='fraction')"
TITLES = {
    "a": "ceilings, and agreement with the CPU",
    "b": "training",
    "c": "training compared with PyTorch",
    "d": "guided sampling compared with PyTorch",
    "e": "feature networks",
    "f": "CIFAR-10: training, and frontiers over w",
    "g": "memory: preflight's count and the device's peak",
}


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A measurement: a command line of another benchmark, which runs in its own process.

    part: its letter. name: unique in the part. kind: measurements of one kind have the same columns and take about as
    long. script, words: the benchmark and its flags. seconds: how long it may take, if none of its kind was made yet.
    xla_flags: added to XLA_FLAGS. after: a smaller measurement of the part; if it runs out of memory, so would this.
    needs: measurements of the part that must be complete. contestant: of peers.py, whose libraries are needed.
    resumes: whether it continues where it stopped, and takes --limit_minutes. places: flags with paths, which may
    differ from call to call.
    """

    part: str
    name: str
    kind: str
    script: str
    words: tuple[str, ...]
    seconds: float
    xla_flags: str = ""
    after: str | None = None
    needs: tuple[str, ...] = ()
    contestant: str | None = None
    resumes: bool = False
    places: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command line without paths, which identifies what was measured."""
        return " ".join([*([f"XLA_FLAGS={self.xla_flags}"] if self.xla_flags else []), self.script, *self.words])


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured at which size.

    config: of harness.CONFIGS. product_size: rows of the matrices of the ceilings. batches: training batch sizes, in
    ascending order; batch: that of variants and profiles; peer_batch: of peers and sampling. profiles: variants of
    device.py. variants: {name: flags of device.py}. remat_batches: of the policies. samplings: (sampler, rule, number
    of levels). networks: {feature network: its flags}. cifar: further flags of cifar.py.
    seconds: {kind: longest time expected of one measurement}. environ: further environment variables.
    """

    config: str
    product_size: int
    repeats: int
    batches: tuple[int, ...]
    batch: int
    peer_batch: int
    profiles: tuple[str, ...]
    variants: Mapping[str, tuple[str, ...]]
    remat_batches: tuple[int, ...]
    xla_flags: tuple[str, ...]
    peers: tuple[str, ...]
    sampling_peers: tuple[str, ...]
    samplings: tuple[tuple[str, str, int], ...]
    networks: Mapping[str, tuple[str, ...]]
    p_uncond: tuple[float, ...]
    cifar: tuple[str, ...]
    seconds: Mapping[str, float]
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)


# The seconds are estimates on the safe side: on one H100 the step compiles in 62 to 133 s, and torch.compile takes
# 100 to 230 s.
FULL = Sizes(
    config="imagenet64",
    product_size=8192,
    repeats=5,
    batches=(64, 128, 256, 512),
    batch=128,
    peer_batch=64,
    profiles=("fused_attention", "plain"),
    variants={
        "plain attention": ("--variants=plain",),
        "8 steps per dispatch": ("--variants=fused_attention", "--steps_per_dispatch=8"),
    },
    remat_batches=(128, 512),
    xla_flags=(
        "--xla_gpu_enable_latency_hiding_scheduler=true",
        "--xla_gpu_enable_command_buffer=",
        "--xla_gpu_exhaustive_tiling_search=true",
        "--xla_gpu_enable_triton_gemm=false",
    ),
    peers=(
        "cfgjax",
        "eager_tuned",
        "eager_compiled",
        "fused_compiled",
        "diffusers_tuned",
        "diffusers_compiled",
        "cfgjax_8",
    ),
    sampling_peers=(
        "cfgjax",
        "eager_tuned",
        "eager_compiled",
        "fused_compiled",
        "diffusers_tuned",
        "diffusers_compiled",
    ),
    samplings=(("ddim()", "cfg()", 32), ("dpmpp_2m()", "cfg()", 16), ("dpmpp_2m()", INTERVAL, 16)),
    networks={
        "inception": ("--network_batch_sizes=64,128,256,512", "--num_images=2048"),
        "cifar10_classifier": ("--network_batch_sizes=128,512,2048", "--num_images=8192"),
    },
    p_uncond=(0.1, 0.2, 0.5),
    cifar=(),
    seconds={
        "ceilings": 60, "agreement": 200, "step": 220, "flags": 260, "kernels": 180, "memory": 180, "jax": 220,
        "torch": 120, "compiled": 300, "networks": 240, "training": 120, "frontier": 300,
    },
)  # fmt: skip
TINY = Sizes(
    config="tiny",
    product_size=64,
    repeats=1,
    batches=(4,),
    batch=4,
    peer_batch=4,
    profiles=("fused_attention",),
    variants={},
    remat_batches=(),
    xla_flags=("--xla_gpu_enable_triton_gemm=false",),
    peers=("cfgjax", "eager_tuned"),
    sampling_peers=("cfgjax", "eager_tuned"),
    samplings=(("dpmpp_2m()", INTERVAL, 4),),
    networks={"classifier": ("--network_batch_sizes=4", "--num_images=8")},
    p_uncond=(0.1,),
    cifar=("--quick", "--guidance=0,1", "--num_samples=20", "--num_steps=2", "--batch_size=10"),
    seconds=dict.fromkeys(FULL.seconds, 20),
    environ={"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_NUM_CPU_DEVICES": "1"},
)


def plan(sizes, cifar=None, runs=None, train_minutes=20.0):
    """Returns {letter: [`Measurement`, …]}. cifar: an .npz, or None if there is none; runs: folder of its runs."""
    return {
        "a": ceilings(sizes),
        "b": training(sizes),
        "c": peers(sizes),
        "d": sampling(sizes),
        "e": networks(sizes),
        "f": frontiers(sizes, cifar, runs, train_minutes),
        "g": memory(sizes),
    }


def ceilings(sizes):
    """Returns the measurements of part a."""
    words = (f"--ceiling_size={sizes.product_size}", f"--repeats={sizes.repeats}")
    return [
        Measurement("a", "ceilings", "ceilings", "device", ("--only=ceilings", *words), sizes.seconds["ceilings"]),
        of_device(sizes, "a", "agreement", "agreement", batch=None),
    ]


def of_device(sizes, part, name, kind, batch, *words, only=None, **about):
    """Returns a measurement by device.py of its part `only`, by default called as the kind."""
    flags = [f"--only={only or kind}", f"--configs={sizes.config}", *([f"--batch_size={batch}"] if batch else [])]
    if kind in ("step", "flags"):
        flags += [f"--repeats={sizes.repeats}"]
    return Measurement(part, name, kind, "device", (*flags, *words), sizes.seconds[kind], **about)


def training(sizes):
    """Returns the measurements of part b: what is most informative first."""
    fused, made = "--variants=fused_attention", []
    names = [f"batch {size}" for size in sizes.batches]
    for i, size in enumerate(sizes.batches):
        after = names[i - 1] if i else None
        made.append(of_device(sizes, "b", names[i], "step", size, fused, after=after))
    for variant in sizes.profiles:
        name = f"profile, {variant.replace('_', ' ')}, batch {sizes.batch}"
        made.append(of_device(sizes, "b", name, "kernels", sizes.batch, f"--variants={variant}"))
    for name, words in sizes.variants.items():
        made.append(of_device(sizes, "b", f"{name}, batch {sizes.batch}", "step", sizes.batch, *words))
    for policy in ("convolutions", "blocks"):
        for size in sizes.remat_batches:
            name, words = f"remat {policy}, batch {size}", f"--variants=remat_{policy}"
            made.append(of_device(sizes, "b", name, "step", size, words))
    for flag in sizes.xla_flags:
        name = f"{flag}, batch {sizes.batch}"
        made.append(of_device(sizes, "b", name, "flags", sizes.batch, fused, only="step", xla_flags=flag))
    order = names.index(f"batch {sizes.batch}") + 1  # the profile of a batch follows it
    return made[:order] + made[len(names) : len(names) + 1] + made[order : len(names)] + made[len(names) + 1 :]


def contestant(sizes, part, prefix, name, *words):
    """Returns the measurement of one contestant of peers.py, alone in memory."""
    kind = "jax" if name.startswith("cfgjax") else "compiled" if name.endswith("compiled") else "torch"
    flags = (f"--configs={sizes.config}", f"--batch_size={sizes.peer_batch}", f"--repeats={max(3, sizes.repeats)}")
    flags += (f"--contestants={name}", *words)
    return Measurement(part, f"{prefix}{name}", kind, "peers", flags, sizes.seconds[kind], contestant=name)


def peers(sizes):
    """Returns the measurements of part c."""
    return [contestant(sizes, "c", "", name) for name in sizes.peers]


def sampling(sizes):
    """Returns the measurements of part d."""
    made = []
    for sampler, rule, steps in sizes.samplings:
        words = ("--task=sample", f"--sampler={sampler}", f"--rule={rule}", f"--num_steps={steps}")
        prefix = f"{sampler.rstrip('()')}, T = {steps}, {rule.partition('(')[0]}: "
        made += [contestant(sizes, "d", prefix, name, *words) for name in sizes.sampling_peers]
    return made


def networks(sizes):
    """Returns the measurements of part e."""
    shared = ("--parts=networks", f"--repeats={sizes.repeats}")
    return [
        Measurement(
            "e", name, "networks", "evaluation", (*shared, f"--networks={name}", *words), sizes.seconds["networks"]
        )
        for name, words in sizes.networks.items()
    ]


def frontiers(sizes, cifar, runs, train_minutes):
    """Returns the measurements of part f."""
    places = () if cifar is None else (f"--data={cifar}", f"--workdir={runs}")
    at = lambda part, name, kind, *words, **about: Measurement(
        "f", name, kind, "cifar", (f"--only={part}", *sizes.cifar, *words), sizes.seconds[kind], places=places, **about
    )
    made = [at("classifier", "classifier", "training", resumes=True)]
    for p in sizes.p_uncond:
        words = (f"--p_uncond={p:g}", f"--train_minutes={train_minutes:g}")
        made.append(at("training", f"training, p_uncond {p:g}", "training", *words, resumes=True))
        needs = ("classifier", made[-1].name)
        made.append(at("frontier", f"frontier, p_uncond {p:g}", "frontier", *words, needs=needs))
    return made


def memory(sizes):
    """Returns the measurements of part g."""
    names = [f"batch {size}" for size in sizes.batches]
    return [
        of_device(sizes, "g", name, "memory", size, "--variants=fused_attention", after=names[i - 1] if i else None)
        for i, (name, size) in enumerate(zip(names, sizes.batches, strict=True))
    ]
