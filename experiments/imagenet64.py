"""ImageNet 64×64 as in "Classifier-Free Diffusion Guidance" (arXiv:2207.12598), with ADM's network.

cfgjax prepare folder ILSVRC2012/train data/imagenet64 --size=64 --crop=adm
cfgjax train --config=experiments/imagenet64.py --workdir=runs/imagenet64
cfgjax download inception
cfgjax evaluate --make-reference --config=experiments/imagenet64.py --out=runs/imagenet64_reference.npz

The classes are the sorted synsets, whatever the source. The network is ADM's without the learned variance, and λ is
continuous. The paper compares p_uncond = 0.1, 0.2 and 0.5, of which 0.5 is consistently the worst. Not measured here.
"""

from .base import denoiser


def get_config():
    """Returns the experiment, as differences from base.py."""
    # Recalled from the paper, not checked against its text: model.dropout, diffusion.logsnr_min,
    # diffusion.logsnr_max, optimizer.learning_rate, optimizer.b1, optimizer.b2, ema.rates, train.batch_size,
    # train.num_steps, sample.num_steps, sample.sampler.
    return denoiser(
        data=dict(path="data/imagenet64", num_classes=1000, image_shape=(64, 64, 3)),
        model=dict(channels=192, multipliers=(1, 2, 3, 4), depth=3, attention_resolutions=(32, 16, 8), dropout=0.1),
        diffusion=dict(schedule="cosine", logsnr_min=-20.0, logsnr_max=20.0, p_uncond=0.1),
        optimizer=dict(learning_rate=3e-4, b1=0.9, b2=0.999),
        ema=dict(rates=(0.9999,)),
        train=dict(batch_size=2048, num_steps=400000),
        checkpoint=dict(keep_every_steps=50000),
        sample=dict(num_steps=256, sampler="ancestral(v=0.3)", grid="schedule()"),
        evaluate=dict(
            guidance=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 2.0, 3.0, 4.0),
            num_samples=50000,
            num_steps=256,
            reference="runs/imagenet64_reference.npz",
        ),
    )
