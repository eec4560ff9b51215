"""A classifier of Fashion-MNIST, 32×32: the feature network of `cfgjax evaluate` for experiments/fashion_mnist.py.

cfgjax prepare idx /usr/share/datasets/fashion-mnist data/fashion_mnist --size=32 --crop=pad --channels=1
cfgjax train --config=experiments/fashion_mnist_classifier.py --workdir=runs/fashion_mnist_classifier

Every sixth image is held out; 88.7 % of these are classified correctly after 9 minutes on one CPU core (x86-64, jax
0.10.2). The hyper-parameters are this project's own.
"""

from .base import classifier


def get_config():
    """Returns the experiment, as differences from base.py."""
    return classifier(
        data=dict(
            path="data/fashion_mnist",
            crop="pad",
            split="train",
            num_classes=10,
            image_shape=(32, 32, 1),
            num_workers=0,
        ),
        model=dict(channels=32, multipliers=(1, 2, 4), depth=1, num_features=128, dropout=0.5),
        optimizer=dict(
            learning_rate=2e-3,
            weight_decay=0.05,
            schedule="cosine",
            warmup_steps=100,
            decay_steps=1500,
            clip_norm=1.0,
        ),
        ema=dict(rates=(0.99,)),
        train=dict(batch_size=64, num_steps=1500, steps_per_dispatch=10),
        checkpoint=dict(every_steps=500),
        evaluate=dict(every_steps=500),
    )
