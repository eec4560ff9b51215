"""Classifiers of noisy ImageNet images, which guide experiments/adm.py (arXiv:2105.05233, section 4).

cfgjax prepare folder ILSVRC2012/train data/imagenet256 --size=256 --crop=adm
cfgjax train --config=experiments/adm_classifier.py:256 --workdir=runs/adm_classifier_256

The argument is the size of the images: 64, 128, 256 or 512. The classes are the sorted synsets. Sizes, batch, weight
decay, learning rate and length are those of the paper's table 12. The crops of at least 0.8 of the side are those of
its released training script. Unlike in that script, every sixth image is held out to measure the accuracy. For 128×128
images that are enlarged to 512×512, the table has another classifier, with batch 1024 and learning rate 6e-5. Not
measured here.
"""

from .base import noisy_classifier

ARGUMENTS = ("64", "128", "256", "512")


def get_config(size):
    """Returns the experiment of a size, as differences from base.py."""
    config = noisy_classifier(
        data=dict(
            path=f"data/imagenet{size}",
            split="train",
            num_classes=1000,
            image_shape=(int(size), int(size), 3),
            random_crop=0.8,
        ),
        model=dict(channels=128, depth=2, attention_resolutions=(32, 16, 8), pool="attention"),
        diffusion=dict(betas="linear", num_timesteps=1000),
        optimizer=dict(learning_rate=3e-4, weight_decay=0.05, schedule="linear", decay_steps=300000),
        ema=dict(rates=(0.9999,)),
        train=dict(batch_size=256, num_steps=300000),
        checkpoint=dict(keep_every_steps=100000),
        evaluate=dict(every_steps=10000),
    )
    if size == "64":
        config.model.update(multipliers=(1, 2, 3, 4), depth=4)
        config.diffusion.betas = "cosine"
        config.optimizer.update(learning_rate=6e-4, weight_decay=0.2)
        config.train.batch_size = 1024
    elif size == "128":
        config.model.multipliers = (1, 1, 2, 3, 4)
    else:
        config.model.multipliers = (1, 1, 2, 2, 4, 4) if size == "256" else (0.5, 1, 1, 2, 2, 4, 4)
        config.optimizer.decay_steps = 500000
        config.train.num_steps = 500000
    return config
