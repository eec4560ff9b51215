"""CIFAR-10, 32×32, with the network of improved DDPM (arXiv:2102.09672) and continuous λ.

cfgjax prepare tfds cifar10 data/cifar10 --size=32
cfgjax train --config=experiments/cifar10.py --workdir=runs/cifar10
cfgjax download inception
cfgjax evaluate --make-reference --config=experiments/cifar10.py --out=runs/cifar10_reference.npz

The first command needs TensorFlow, in any environment; an .npz or folder of images does as well. Neither guidance paper
reports CIFAR-10: the hyper-parameters are those of improved DDPM, recalled, not checked against its text. Not measured
here.
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
                path="data/cifar10",
                crop="adm",
                split="all",
                num_classes=10,
                image_shape=(32, 32, 3),
                random_flip=True,
                num_workers=4,
                worker_timeout_seconds=600.0,
            ),
            model=dict(
                name="unet",
                channels=128,
                multipliers=(1, 2, 2, 2),
                depth=3,
                attention_resolutions=(16, 8),
                num_heads=4,
                head_channels=placeholder(int),
                legacy_attention_order=True,
                scale_shift=True,
                resblock_resample=True,
                learned_resample=True,
                rescale=False,
                dropout=0.3,
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
                warmup_steps=0,
                decay_steps=placeholder(int),
                clip_norm=placeholder(float),
            ),
            ema=dict(
                rates=(0.9999,),
                warmup=True,
            ),
            train=dict(
                batch_size=128,
                num_steps=500000,
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
                guidance=(0.0, 1.0, 3.0),
                per_cell=4,
                num_steps=256,
                sampler="ancestral",
                v=0.3,
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
                reference="runs/cifar10_reference.npz",
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
