"""ADM's upsampler of ImageNet, 128×128 to 512×512 (arXiv:2105.05233), class-conditional, in discrete time.

cfgjax prepare folder ILSVRC2012/train data/imagenet512 --size=512 --crop=adm
cfgjax train --config=experiments/adm_imagenet512_upsampler.py --workdir=runs/adm_imagenet512_upsampler

The classes are the sorted synsets. The small images are means over squares of 4×4 pixels. Sizes, batch, learning rate
and length are those of the paper's table 13 (where attention at 8 pixels is printed too; the published network has
none). Not measured here.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config():
    """The experiment, every value present."""
    return ConfigDict(
        dict(
            seed=0,
            data=dict(
                source="prepared",
                path="data/imagenet512",
                crop="adm",
                split="all",
                num_classes=1000,
                image_shape=(512, 512, 3),
                random_flip=True,
                random_crop=1.0,
                low_res_size=128,
                num_workers=16,
                worker_timeout_seconds=600.0,
            ),
            model=dict(
                name="unet",
                channels=192,
                multipliers=(1, 1, 2, 2, 4, 4),
                depth=2,
                attention_resolutions=(32, 16),
                num_heads=placeholder(int),
                head_channels=64,
                legacy_attention_order=True,
                scale_shift=True,
                resblock_resample=True,
                learned_resample=True,
                rescale=False,
                dropout=0.0,
                conditional=True,
                null_label=False,
                low_res=True,
                low_res_noise=False,
                dtype="bfloat16",
                fused_attention=True,
                remat="none",
            ),
            diffusion=dict(
                p_uncond=0.0,
                betas="linear",
                num_timesteps=1000,
                learned_variance=True,
                bound_weight=0.001,
                time_sampler="uniform",
                low_res_logsnr_min=placeholder(float),
            ),
            optimizer=dict(
                name="adamw",
                learning_rate=1e-4,
                b1=0.9,
                b2=0.999,
                eps=1e-8,
                weight_decay=0.0,
                schedule="constant",
                warmup_steps=0,
                decay_steps=placeholder(int),
                clip_norm=placeholder(float),
            ),
            ema=dict(
                rates=(0.9999,),
                warmup=True,
            ),
            train=dict(
                batch_size=256,
                num_steps=1050000,
                log_every_steps=100,
                steps_per_dispatch=1,
                accumulate_steps=1,
                max_skipped_in_row=10,
                init_from=placeholder(str),
            ),
            checkpoint=dict(
                every_steps=5000,
                keep_last=3,
                keep_every_steps=100000,
            ),
            sample=dict(
                every_steps=10000,
                labels=tuple(range(10)),
                guidance=(0.0,),
                per_cell=4,
                num_steps=250,
                sampler="ancestral",
                v=placeholder(float),  # the learned one
                eta=0.0,
            ),
            evaluate=dict(
                guidance=(0.0,),
                num_samples=50000,
                num_steps=250,
                batch_size=10,
                label_policy="random",
                features="inception",
                classifier=placeholder(str),
                reference=placeholder(str),
                every_steps=placeholder(int),
                every_num_samples=5000,
                every_guidance=(0.0,),
            ),
            mesh=dict(
                data=-1,
                fsdp=1,
                slices=1,
            ),
            cluster=dict(
                timeout_seconds=60.0,
                start_timeout_seconds=300.0,
            ),
        )
    )
