"""Fashion-MNIST, 28×28 in 32×32, grey: a conditional U-Net of 8 million parameters.

cfgjax prepare idx /usr/share/datasets/fashion-mnist data/fashion_mnist --size=32 --crop=pad --channels=1
cfgjax train --config=experiments/fashion_mnist.py --workdir=runs/fashion_mnist

The images are padded with black to 32×32, because the network halves the size repeatedly. docs/data.md says where the
files come from. The feature network of `cfgjax evaluate` is
experiments/fashion_mnist_classifier.py. The hyper-parameters are this project's own. Not measured here.
"""

from .base import denoiser


def get_config():
    """Returns the experiment, as differences from base.py."""
    return denoiser(
        data=dict(
            path="data/fashion_mnist",
            crop="pad",
            split="train",
            num_classes=10,
            image_shape=(32, 32, 1),
            num_workers=4,
        ),
        model=dict(channels=64, multipliers=(1, 2, 2), attention_resolutions=(16, 8), dropout=0.1),
        optimizer=dict(learning_rate=2e-4, warmup_steps=500, clip_norm=1.0),
        ema=dict(rates=(0.999,)),
        train=dict(batch_size=128, num_steps=60000),
        checkpoint=dict(keep_every_steps=20000),
        evaluate=dict(
            guidance=(0.0, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 4.0),
            num_samples=10000,
            features="classifier",
            classifier="runs/fashion_mnist_classifier",
            every_num_samples=1000,
        ),
    )
