"""The classifier that guides experiments/adm_imagenet64.py, of noisy images (arXiv:2105.05233, section 4).

cfgjax prepare folder ILSVRC2012/train data/imagenet64 --size=64 --crop=adm
cfgjax train --config=experiments/adm_imagenet64_classifier.py --workdir=runs/adm_imagenet64_classifier

The classes are the sorted synsets. Sizes, batch, weight decay, learning rate and length are those of the paper's table
12; the crops, of at least 0.8 of the side, those of its released training script. Every sixth image is held out to
measure the accuracy, which that script does not do. Not measured here.
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
                path="data/imagenet64",
                crop="adm",
                split="train",
                num_classes=1000,
                image_shape=(64, 64, 3),
                random_flip=True,
                random_crop=0.8,
                num_workers=16,
                worker_timeout_seconds=600.0,
            ),
            model=dict(
                name="noisy_classifier",
                channels=128,
                multipliers=(1, 2, 3, 4),
                depth=4,
                attention_resolutions=(32, 16, 8),
                num_heads=placeholder(int),
                head_channels=64,
                legacy_attention_order=True,
                scale_shift=True,
                resblock_resample=True,
                learned_resample=True,
                rescale=False,
                dropout=0.0,
                pool="attention",
                dtype="bfloat16",
                fused_attention=True,
                remat="none",
            ),
            diffusion=dict(
                betas="cosine",
                num_timesteps=1000,
            ),
            optimizer=dict(
                name="adamw",
                learning_rate=6e-4,
                b1=0.9,
                b2=0.999,
                eps=1e-8,
                weight_decay=0.2,
                schedule="linear",
                warmup_steps=0,
                decay_steps=300000,
                clip_norm=placeholder(float),
            ),
            ema=dict(
                rates=(0.9999,),
                warmup=True,
            ),
            train=dict(
                batch_size=1024,
                num_steps=300000,
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
            evaluate=dict(
                every_steps=10000,
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
