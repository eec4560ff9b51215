"""A classifier of CIFAR-10, 32×32, for features and accuracy in `cfgjax evaluate` of experiments/cifar10.py.

cfgjax prepare tfds cifar10 data/cifar10 --size=32
cfgjax train --config=experiments/cifar10_classifier.py --workdir=runs/cifar10_classifier

Every sixth image is held out. The hyper-parameters are this project's own. Not measured here.
"""

from .base import classifier


def get_config():
    """Returns the experiment, as differences from base.py."""
    return classifier(
        data=dict(path="data/cifar10", split="train", num_classes=10, image_shape=(32, 32, 3), num_workers=2),
        model=dict(channels=64, multipliers=(1, 2, 4), num_features=256, dropout=0.5),
        optimizer=dict(
            learning_rate=2e-3,
            weight_decay=0.05,
            schedule="cosine",
            warmup_steps=200,
            decay_steps=12000,
            clip_norm=1.0,
        ),
        ema=dict(rates=(0.999,)),
        train=dict(batch_size=128, num_steps=12000, steps_per_dispatch=10),
        checkpoint=dict(every_steps=500),
        evaluate=dict(every_steps=500),
    )
