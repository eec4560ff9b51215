"""Imagenette, ten classes of ImageNet at 64×64, 9,469 photographs: ADM's network at two thirds of its width.

cfgjax prepare folder imagenette2/train data/imagenette64 --size=64 --crop=adm
cfgjax train --config=experiments/imagenette.py --workdir=runs/imagenette

imagenette2.tgz (fast.ai) holds train/SYNSET/*.JPEG; the classes are the sorted synsets. So few images are soon learned
by heart, hence the dropout and the length. The hyper-parameters are this project's own. Not measured here.
"""

from .base import denoiser


def get_config():
    """The experiment: what differs from base.py."""
    return denoiser(
        data=dict(path="data/imagenette64", num_classes=10, image_shape=(64, 64, 3), num_workers=8),
        model=dict(channels=128, multipliers=(1, 2, 3, 4), attention_resolutions=(16, 8), dropout=0.2),
        optimizer=dict(learning_rate=1e-4, warmup_steps=1000, clip_norm=1.0),
        train=dict(batch_size=128, num_steps=150000),
        checkpoint=dict(keep_every_steps=50000),
        evaluate=dict(num_samples=10000),
    )
