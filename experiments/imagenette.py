"""Imagenette, ten classes of ImageNet at 64×64, 9,469 photographs: ADM's network at two thirds of its width.

cfgjax prepare folder imagenette2/train data/imagenette64 --size=64 --crop=adm
cfgjax train --config=experiments/imagenette.py --workdir=runs/imagenette

imagenette2.tgz (fast.ai) contains train/SYNSET/*.JPEG. The classes are the sorted synsets. With so few images the
network overfits soon, which is the reason for the dropout and the number of steps. The hyper-parameters are this
project's own. Not measured here.
"""

from .base import denoiser


def get_config():
    """Returns the experiment, as differences from base.py."""
    return denoiser(
        data=dict(path="data/imagenette64", num_classes=10, image_shape=(64, 64, 3), num_workers=8),
        model=dict(channels=128, multipliers=(1, 2, 3, 4), attention_resolutions=(16, 8), dropout=0.2),
        optimizer=dict(learning_rate=1e-4, warmup_steps=1000, clip_norm=1.0),
        train=dict(batch_size=128, num_steps=150000),
        checkpoint=dict(keep_every_steps=50000),
        evaluate=dict(num_samples=10000),
    )
