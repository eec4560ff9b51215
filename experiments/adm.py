"""ADM on ImageNet, class-conditional, in discrete time, as in "Diffusion Models Beat GANs" (arXiv:2105.05233).

cfgjax prepare folder ILSVRC2012/train data/imagenet256 --size=256 --crop=adm
cfgjax train --config=experiments/adm.py:256 --workdir=runs/adm_256

The argument is the size of the images: 64, 128, 256 or 512. The classes are the sorted synsets. Sizes, batch, learning
rate and length are those of the paper's table 11. Guide the model with experiments/adm_classifier.py of the same size,
at scale 1.0 for 64 and 256, 0.5 for 128 and 4.0 for 512 (table 14). Not measured here.

For the paper's unconditional model of size 256, which is guided at scale 10, add --config.model.conditional=False and
use another workdir.
"""

from .base import denoiser

ARGUMENTS = ("64", "128", "256", "512")


def get_config(size):
    """Returns the experiment of a size, as differences from base.py."""
    config = denoiser(
        data=dict(
            path=f"data/imagenet{size}",
            num_classes=1000,
            image_shape=(int(size), int(size), 3),
            random_crop=1.0,
            low_res_size=None,
        ),
        model=dict(channels=256, depth=2, attention_resolutions=(32, 16, 8), null_label=False),
        diffusion=dict(betas="linear", num_timesteps=1000, p_uncond=0.0, learned_variance=True, bound_weight=0.001),
        optimizer=dict(learning_rate=1e-4),
        ema=dict(rates=(0.9999,)),
        train=dict(batch_size=256),
        checkpoint=dict(keep_every_steps=100000),
        sample=dict(guidance=(0.0,), num_steps=250, sampler="ancestral()"),  # with the learned variance
        evaluate=dict(guidance=(0.0,), num_samples=50000, num_steps=250, label_policy="random"),
    )
    if size == "64":
        config.model.update(channels=192, multipliers=(1, 2, 3, 4), depth=3, dropout=0.1, legacy_attention_order=False)
        config.diffusion.betas = "cosine"
        config.optimizer.learning_rate = 3e-4
        config.train.update(batch_size=2048, num_steps=540000)
        config.checkpoint.keep_every_steps = 20000
    elif size == "128":
        config.model.update(multipliers=(1, 1, 2, 3, 4), num_heads=4, head_channels=None)
        config.train.num_steps = 4360000
    elif size == "256":
        config.model.multipliers = (1, 1, 2, 2, 4, 4)
        config.train.num_steps = 1980000
        config.evaluate.batch_size = 50
    else:
        config.model.multipliers = (0.5, 1, 1, 2, 2, 4, 4)
        config.train.num_steps = 1940000
        config.evaluate.batch_size = 10
    return config
