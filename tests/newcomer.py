"""A folder in which the commands of the documents can be followed within seconds.

Its experiment files are the real ones with small networks, few steps and few samples; small files stand in for what has
to be fetched: photographs, sets of TFDS, published weights.
"""

import contextlib
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from compiling import QUICKLY
from convert.weight_files import SMALL_ADM, save_pt
from data.images import write_folder, write_npz
from documents import ROOT, Snippet, steps
from ml_collections import ConfigDict

from cfgjax.base import inception_weights
from cfgjax.cli import main as cli
from cfgjax.convert import guided_diffusion, presets
from cfgjax.convert.layout import shapes_of
from cfgjax.convert.presets import Preset
from cfgjax.data.sources import arrays, idx, tfds
from cfgjax.evaluation.features import networks as features
from cfgjax.jobs.sweep import entries
from cfgjax.runs.config import load_file, variants

SYNSETS = ("n01440764", "n01443537", "n01484850")
SIZE = 8  # pixels of all images
SMALL = {  # the same in all experiments where possible, so that compiled programs are shared
    "data.num_workers": 0,
    "model.channels": 32,
    "model.multipliers": (1,),
    "model.depth": 1,
    "model.attention_resolutions": (),
    "model.width": 32,
    "model.legacy_attention_order": True,
    "model.dropout": 0.0,
    "model.dtype": "float32",
    "diffusion.betas": "linear",
    "optimizer.learning_rate": 1e-3,
    "optimizer.weight_decay": 0.0,
    "optimizer.schedule": "constant",
    "optimizer.warmup_steps": 0,
    "optimizer.decay_steps": None,
    "optimizer.clip_norm": 1.0,
    "ema.rates": (0.9,),
    "train.batch_size": 64,  # a row for each device of the documents' preflight
    "train.num_steps": 2,
    "train.log_every_steps": 100,  # and at the end
    "train.steps_per_dispatch": 1,
    "train.accumulate_steps": 1,
    "checkpoint.every_steps": 100,  # and at the end
    "sample.every_steps": 1000,
    "sample.labels": (0, 1),
    "sample.per_cell": 1,
    "sample.num_steps": 2,
    "evaluate.num_samples": 48,
    "evaluate.num_steps": 2,
    "evaluate.batch_size": 48,
}
SMALLER = {"--num_samples": 48, "--num_steps": 2, "--size": SIZE, "--config.train.num_steps": 2}
ADDED = {"sample": {"--per_cell": 1, "--num_steps": 2}}
UNET = SMALL_ADM | dict(out_channels=6, num_classes=5)
PUBLISHED = {  # a small network of the kind of each published model that the documents convert, and its file
    "imagenet64": (Preset("unet", UNET | {"image_size": 8}, "cosine", "small", 5), "64x64_diffusion.pt"),
    "upsampler_64_256": (
        Preset("upsampler", UNET | {"image_size": 16}, "linear", "small", 5, low_res_size=8),
        "64_256_upsampler.pt",
    ),
}


def small_experiment(text):
    """The config of an experiment, FILE or FILE:ARGUMENT, with small values."""
    config = ConfigDict(load_file(text)).unlock()
    data = config.data
    if data.source == "prepared":
        data.update(num_classes=len(SYNSETS), image_shape=(SIZE, SIZE, data.image_shape[-1]))
    if data.get("crop") == "pad":
        data.crop = "area"  # images of 28×28 are larger than SIZE
    if "attention_resolutions" in config.model:  # keeps the one of the two that is present
        name, value = ("num_heads", 1) if config.model.num_heads is not None else ("head_channels", 32)
        config.model[name] = value
    if data.get("low_res_size") is not None:
        data.low_res_size = SIZE // 2
    if data.source == "mixture":
        data.num_examples = 256
    if "every_steps" in config.evaluate and "num_samples" not in config.evaluate:  # a classifier's
        config.evaluate.every_steps = 2
    config.update_from_flattened_dict({key: value for key, value in SMALL.items() if has(config, key)})
    return config


def has(config, key):
    section, name = key.split(".")
    return section in config and name in config[section]


def make(folder):
    """Fills folder with a checkout and the files that a newcomer has downloaded."""
    for name in ("cfgjax", "pyproject.toml", "setup.py", "README.md", "LICENSE"):
        (folder / name).symlink_to(ROOT / name)
    for path in [*ROOT.glob("experiments/*.py"), *ROOT.glob("experiments/sweeps/*.py")]:
        there = folder / path.relative_to(ROOT)
        there.parent.mkdir(parents=True, exist_ok=True)
        if path.parent.name == "sweeps":
            there.write_text(path.read_text())
            continue
        there.write_text(stand_in(path))
    write_folder(folder / "ILSVRC2012" / "train", SYNSETS, count=8)
    write_folder(folder / "imagenette2" / "train", SYNSETS, count=8)
    write_folder(folder / "my_images", SYNSETS, count=8)
    for name in ("images", "cifar10", "tfds"):
        write_npz(folder / f"{name}.npz", count=24, shape=(6, 6, 3), classes=len(SYNSETS))
    for preset, name in PUBLISHED.values():
        net, image_shape = guided_diffusion.MAKERS[preset.kind](preset.arguments)
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes_of(net, image_shape))
        save_pt(folder / name, guided_diffusion.state_dict(net, zeros))


def stand_in(path):
    """The text of a config file for `small_experiment` of the experiment file at path."""
    code = f"import sys\n\nsys.path.insert(0, {str(ROOT / 'tests')!r})\nfrom newcomer import small_experiment\n\n\n"
    arguments = [text.rpartition(":")[2] for text in variants(path) if text != str(path)]
    if not arguments and path.stem != "own_images":  # whose argument is a folder
        return f"{code}def get_config():\n    return small_experiment({str(path)!r})\n"
    body = f'    return small_experiment({str(path)!r} + ":" + argument)\n'
    known = f"ARGUMENTS = {arguments}\n\n\n" if arguments else ""
    return f"{code}{known}def get_config(argument):\n{body}"


@contextlib.contextmanager
def living_in(folder, monkeypatch):
    """Changes to `folder`; nothing is downloaded, submitted or written elsewhere."""
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", list(sys.argv))
        patch.setattr("cfgjax.base.experiments.PACKAGE", folder / "cfgjax")  # --config=digits is the small experiment
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for name, own in {name: getattr(jax, name) for name in ("devices", "local_devices")}.items():
            patch.setattr(jax, name, lambda *which, own=own: own(*which)[:1])  # compiling for one is quicker
        patch.setenv("JAX_NUM_CPU_DEVICES", "1")  # of the processes that commands start
        for name, value in QUICKLY.items():
            patch.setenv(name, value)
        patch.delenv("CFGJAX_INCEPTION", raising=False)
        patch.setattr(inception_weights, "INCEPTION_SHA256", hashlib.sha256(b"weights").hexdigest()[:8])
        patch.setattr(inception_weights, "fetch_file", lambda url, path: Path(path).write_bytes(b"weights"))
        patch.setattr(features, "load_inception", random_features)
        patch.setattr(presets, "PRESETS", {name: preset for name, (preset, _) in PUBLISHED.items()})
        patch.setattr(tfds, "download", lambda name, *folders: name)
        patch.setattr(tfds, "list_tfds", lambda name, split: arrays.list_arrays("tfds.npz"))
        patch.setattr(idx, "list_idx", lambda folder, split, class_names: arrays.list_arrays("tfds.npz"))
        yield


def random_features(path=None, resize="tf1"):
    """In place of Inception: random projections of the pixels, if its weights were downloaded."""
    inception_weights.find_inception(path)

    def apply(params, images):
        flat = images.reshape(len(images), -1) / 255.0
        project = lambda width: flat @ jax.random.normal(jax.random.key(width), (flat.shape[1], width))
        return {"features": project(8), "logits": project(10), "spatial": project(7)}

    return features.FeatureNetwork("inception", f"{'0' * 64}-{resize}", apply, {}, judges=False)


def smaller(words):
    """A command with smaller numbers, and with --dry_run if it would submit a job."""
    words = ["--crop=area" if word == "--crop=pad" else reduced(word) for word in words]
    given = {word.partition("=")[0] for word in words}
    words += [f"{name}={value}" for name, value in ADDED.get(words[1], {}).items() if name not in given]
    if words[1] == "launch" and words[2] != "local":
        words.insert(3, "--dry_run")
    if words[1] == "sweep" and "--launcher=slurm" in words:
        words.append("--dry_run")
    elif words[1] == "sweep":
        flags = dict(word.split("=", 1) for word in words[2:])
        runs = entries.read_sweep(flags["--sweep"], flags["--out"], workdir=flags.get("--workdir"))
        words.append(f"--only={runs[0].name}")
    return words


def reduced(word):
    """--flag=value, with a small value for the flags that have one."""
    name, _, value = word.partition("=")
    name = name.replace("-", "_").replace("__", "--", 1)
    return f"{name}={SMALLER[name]}" if name in SMALLER and value.isdecimal() else word


def in_own_process(words):
    """Whether a command starts processes or needs its own jax."""
    return words[1] in ("preflight", "launch", "sweep") and "--dry_run" not in words


def numbered(documents):
    """The parameters of a test of every step: (document, number, step), and their names."""
    listed = [(document, i, step) for document in documents for i, step in enumerate(steps(document))]
    return listed, [f"{document}:{i}:{' '.join(str(step).split()[1:4])}" for document, i, step in listed]


def follow(step):
    """Does one step of a document, a `cfgjax` command or a snippet, in the working folder. Raises if the step fails."""
    if isinstance(step, Snippet):
        sys.argv = ["script", "sampler.npz"]  # of the script that the guide to exporting has
        exec(re.sub(r"train=dict\(num_steps=\d+\)", "train=dict(num_steps=2)", step.text), {})
        return
    words = smaller(step.words)
    if in_own_process(words):
        ran = subprocess.run([sys.executable, "-m", "cfgjax", *words[1:]], capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, f"{step}\n{ran.stdout}{ran.stderr}"
    else:
        assert cli.run_command(words[1:]) == 0, step


def runnable(step):
    """Whether `follow` does this step."""
    if isinstance(step, Snippet):
        return True
    return step.words[0] == "cfgjax" and step.words[1] != "demo" and not names_bucket(step)


def names_bucket(step):
    """Whether a command has a URL of a bucket."""
    return any(scheme in word for word in step.words for scheme in ("gs://", "s3://"))
