"""Imagenette, ten classes of ImageNet at 64×64, 9,469 photographs: ADM's network at two thirds of its width.

cfgjax prepare folder imagenette2/train data/imagenette64 --size=64 --crop=adm
cfgjax train --config=experiments/imagenette.py --workdir=runs/imagenette

imagenette2.tgz (fast.ai) holds train/SYNSET/*.JPEG; the classes are the sorted synsets. So few images are soon learned
by heart, hence the dropout and the length. The hyper-parameters are this project's own. Not measured here.
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
                path="data/imagenette64",
                crop="adm",
                split="all",
                num_classes=10,
                image_shape=(64, 64, 3),
                random_flip=True,
                num_workers=8,
                worker_timeout_seconds=600.0,
            ),
            model=dict(
                name="unet",
                channels=128,
                multipliers=(1, 2, 3, 4),
                depth=2,
                attention_resolutions=(16, 8),
                num_heads=placeholder(int),
                head_channels=64,
                legacy_attention_order=True,
                scale_shift=True,
                resblock_resample=True,
                learned_resample=True,
                rescale=False,
                dropout=0.2,
                conditional=True,
                null_label=True,
                low_res=False,
                low_res_noise=False,
                dtype="bfloat16",
                fused_attention=True,
                remat="none",
            ),
            diffusion=dict(
                schedule="cosine",
                logsnr_min=-20.0,
                logsnr_max=20.0,
                p_uncond=0.1,
                learned_variance=False,
                time_sampler="uniform",
            ),
            optimizer=dict(
                name="adamw",
                learning_rate=1e-4,
                b1=0.9,
                b2=0.999,
                eps=1e-8,
                weight_decay=0.0,
                schedule="constant",
                warmup_steps=1000,
                decay_steps=placeholder(int),
                clip_norm=1.0,
            ),
            ema=dict(
                rates=(0.9999,),
                warmup=True,
            ),
            train=dict(
                batch_size=128,
                num_steps=150000,
                log_every_steps=100,
                steps_per_dispatch=1,
                accumulate_steps=1,
                max_skipped_in_row=10,
                init_from=placeholder(str),
            ),
            checkpoint=dict(
                every_steps=5000,
                keep_last=3,
                keep_every_steps=50000,
            ),
            sample=dict(
                every_steps=10000,
                labels=tuple(range(10)),
                guidance=(0.0, 1.0, 3.0),
                per_cell=4,
                num_steps=256,
                sampler="ancestral",
                v=0.3,
                eta=0.0,
            ),
            evaluate=dict(
                guidance=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 2.0, 3.0, 4.0),
                num_samples=10000,
                num_steps=256,
                batch_size=250,
                label_policy="balanced",
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
