"""CIFAR-10, 32×32, with the network of improved DDPM (arXiv:2102.09672) and continuous λ.

cfgjax prepare tfds cifar10 data/cifar10 --size=32
cfgjax train --config=experiments/cifar10.py --workdir=runs/cifar10
cfgjax download inception
cfgjax evaluate --make-reference --config=experiments/cifar10.py --out=runs/cifar10_reference.npz

The first command needs TensorFlow; it can run in another environment. You can also prepare an .npz or a folder of
images. Neither guidance paper reports CIFAR-10. The hyper-parameters are those of improved DDPM, recalled, not checked
against its text. Not measured here.
"""

from .base import denoiser


def get_config():
    """Returns the experiment, as differences from base.py."""
    return denoiser(
        data=dict(path="data/cifar10", num_classes=10, image_shape=(32, 32, 3), num_workers=4),
        # Recalled from improved DDPM, not checked against its text.
        model=dict(
            channels=128,
            multipliers=(1, 2, 2, 2),
            depth=3,
            attention_resolutions=(16, 8),
            num_heads=4,
            head_channels=None,
            dropout=0.3,
        ),
        optimizer=dict(learning_rate=1e-4),
        ema=dict(rates=(0.9999,)),
        train=dict(batch_size=128, num_steps=500000),
        # This project's own.
        checkpoint=dict(keep_every_steps=100000),
        evaluate=dict(reference="runs/cifar10_reference.npz"),
    )
