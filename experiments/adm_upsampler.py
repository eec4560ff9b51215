"""ADM's upsamplers of ImageNet, 64×64 to 256×256 and 128×128 to 512×512 (arXiv:2105.05233), class-conditional.

cfgjax prepare folder ILSVRC2012/train data/imagenet256 --size=256 --crop=adm
cfgjax train --config=experiments/adm_upsampler.py:256 --workdir=runs/adm_upsampler_256

The argument is the size of the large images: 256 or 512. The classes are the sorted synsets. Time is discrete. The
small images are means over squares of 4×4 pixels. Sizes, batch, learning rate and length are those of the paper's table
13. For size 512 the table also lists attention at 8 pixels, which the published network does not have. Not measured
here.
"""

from .base import denoiser

ARGUMENTS = ("256", "512")


def get_config(size):
    """Returns the experiment of a size, as differences from base.py."""
    config = denoiser(
        data=dict(
            path=f"data/imagenet{size}",
            num_classes=1000,
            image_shape=(int(size), int(size), 3),
            random_crop=1.0,
            low_res_size=int(size) // 4,
        ),
        model=dict(channels=192, multipliers=(1, 1, 2, 2, 4, 4), depth=2, null_label=False, low_res=True),
        diffusion=dict(betas="linear", num_timesteps=1000, p_uncond=0.0, learned_variance=True, bound_weight=0.001),
        optimizer=dict(learning_rate=1e-4),
        ema=dict(rates=(0.9999,)),
        train=dict(batch_size=256),
        checkpoint=dict(keep_every_steps=100000),
        sample=dict(guidance=(0.0,), num_steps=250, sampler="ancestral()"),  # with the learned variance
        evaluate=dict(guidance=(0.0,), num_samples=50000, num_steps=250, label_policy="random"),
    )
    if size == "256":
        config.model.update(attention_resolutions=(32, 16, 8), num_heads=4, head_channels=None)
        config.train.num_steps = 500000
        config.evaluate.batch_size = 50
    else:
        config.model.update(attention_resolutions=(32, 16), head_channels=64)
        config.train.num_steps = 1050000
        config.evaluate.batch_size = 10
    return config
