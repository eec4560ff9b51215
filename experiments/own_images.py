"""Your own images, as `cfgjax prepare` or `cfgjax train --data=…` prepares them: own_images:FOLDER[,large].

cfgjax prepare folder my_images data/mine --size=32
cfgjax train --config=own_images:data/mine --workdir=runs/mine

Shape and classes are those of the prepared set. The network follows its size:

size of the images   8      16        32        64           128             256
multipliers          1,2    1,2,2     1,2,2     1,2,2,2      1,1,2,2,2       1,1,2,2,4,4
attention at         4      8         8         16, 8        16, 8           16, 8

The small network has 32 channels and one block at each resolution, and trains for 3,000 steps of batch 64, for CPUs.
The large one has 128 channels and two blocks, in bfloat16, and trains for 100,000 steps of batch 128, for accelerators.
Both predict v, and drop a tenth of the labels. A set of one class is trained without labels, and has no guidance. Any
value can be overridden with --config.key=value. The hyper-parameters are this project's own.
"""

import json

from cfgjax.base.storage import place

from .base import denoiser

MULTIPLIERS = {8: (1, 2), 16: (1, 2, 2), 32: (1, 2, 2), 64: (1, 2, 2, 2), 128: (1, 1, 2, 2, 2), 256: (1, 1, 2, 2, 4, 4)}
ATTENTION = {8: (4,), 16: (8,), 32: (8,)}  # larger images: 16 and 8
MAX_ROWS = 10  # of the grids
KINDS = {
    "small": dict(
        model=dict(channels=32, depth=1, head_channels=32, dtype="float32", fused_attention=False),
        optimizer=dict(learning_rate=1e-3, warmup_steps=300, clip_norm=1.0),
        ema=dict(rates=(0.999,)),
        train=dict(batch_size=64, num_steps=3000, steps_per_dispatch=10),
        checkpoint=dict(every_steps=500),
        sample=dict(every_steps=1000),
    ),
    "large": dict(
        model=dict(channels=128, depth=2),
        optimizer=dict(learning_rate=1e-4, warmup_steps=1000, clip_norm=1.0),
        ema=dict(rates=(0.9999,)),
        train=dict(batch_size=128, num_steps=100_000),
        checkpoint=dict(every_steps=5000),
        sample=dict(every_steps=10_000),
    ),
}


def get_config(argument):
    """Returns the experiment of a prepared folder. argument: FOLDER, or FOLDER,large."""
    folder, _, kind = argument.partition(",")
    about = json.loads((place(folder) / "dataset.json").read_text())
    size, channels, classes = about["request"]["size"], about["request"]["channels"], len(about["classes"])
    if size not in MULTIPLIERS:
        raise ValueError(f"the images are {size}×{size}; need one of {', '.join(map(str, MULTIPLIERS))}")
    if (kind or "small") not in KINDS:
        raise ValueError(f"{kind!r} is no network; known: {', '.join(KINDS)}")
    given = {section: dict(values) for section, values in KINDS[kind or "small"].items()}
    given["data"] = dict(
        path=folder,
        crop=about["request"]["crop"],
        num_classes=classes,
        image_shape=(size, size, channels),
        random_flip=False,
        num_workers=0 if (kind or "small") == "small" else 8,
    )
    given["model"] |= dict(multipliers=MULTIPLIERS[size], attention_resolutions=ATTENTION.get(size, (16, 8)))
    guided = classes > 1
    given["diffusion"] = dict(p_uncond=0.1 if guided else 0.0, parametrisation="v", weighting="v")
    given["sample"] |= dict(labels=tuple(range(min(classes, MAX_ROWS))))
    given["sample"] |= dict(guidance=(-1.0, 0.0, 1.0, 3.0) if guided else (0.0,))
    return denoiser(**given)
