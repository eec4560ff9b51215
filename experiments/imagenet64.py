"""ImageNet 64×64 as in "Classifier-Free Diffusion Guidance" (arXiv:2207.12598), with ADM's network.

cfgjax prepare folder ILSVRC2012/train data/imagenet64 --size=64 --crop=adm
cfgjax train --config=experiments/imagenet64.py --workdir=runs/imagenet64
cfgjax download inception
cfgjax evaluate --make-reference --config=experiments/imagenet64.py --out=runs/imagenet64_reference.npz

The classes are the sorted synsets, whatever the source. ADM's network predicts ε alone, λ is continuous. p_uncond is
0.1, 0.2 or 0.5 in the paper; 0.5 is consistently the worst. Not measured here.
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
                split="all",
                num_classes=1000,
                image_shape=(64, 64, 3),
                random_flip=True,
                num_workers=16,
                worker_timeout_seconds=600.0,
            ),
            model=dict(
                name="unet",
                channels=192,
                multipliers=(1, 2, 3, 4),
                depth=3,
                attention_resolutions=(32, 16, 8),
                num_heads=placeholder(int),
                head_channels=64,
                legacy_attention_order=True,
                scale_shift=True,
                resblock_resample=True,
                learned_resample=True,
                rescale=False,
                dropout=0.1,  # recalled from the paper, not checked against its text
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
                logsnr_min=-20.0,  # recalled from the paper, not checked against its text
                logsnr_max=20.0,  # recalled from the paper, not checked against its text
                p_uncond=0.1,
                learned_variance=False,
                time_sampler="uniform",
            ),
            optimizer=dict(
                name="adamw",
                learning_rate=3e-4,  # recalled from the paper, not checked against its text
                b1=0.9,  # recalled from the paper, not checked against its text
                b2=0.999,  # recalled from the paper, not checked against its text
                eps=1e-8,
                weight_decay=0.0,
                schedule="constant",
                warmup_steps=0,
                decay_steps=placeholder(int),
                clip_norm=placeholder(float),
            ),
            ema=dict(
                rates=(0.9999,),  # recalled from the paper, not checked against its text
                warmup=True,
            ),
            train=dict(
                batch_size=2048,  # recalled from the paper, not checked against its text
                num_steps=400000,  # recalled from the paper, not checked against its text
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
                num_steps=256,  # recalled from the paper, not checked against its text
                sampler="ancestral",
                v=0.3,  # recalled from the paper, not checked against its text
                eta=0.0,
            ),
            evaluate=dict(
                guidance=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 2.0, 3.0, 4.0),
                num_samples=50000,
                num_steps=256,
                batch_size=250,
                label_policy="balanced",
                features="inception",
                classifier=placeholder(str),
                reference="runs/imagenet64_reference.npz",
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
