"""Fashion-MNIST, 28×28 in 32×32, grey: a conditional U-Net of 8 million parameters.

cfgjax prepare tfds fashion_mnist data/fashion_mnist --size=32 --crop=pad --channels=1
cfgjax train --config=experiments/fashion_mnist.py --workdir=runs/fashion_mnist

The images lie in the middle of 32×32 black pixels, as networks of powers of two take them; docs/data.md prepares the
data without TensorFlow. The feature network of cfgjax evaluate is experiments/fashion_mnist_classifier.py. The
hyper-parameters are this project's own. Not measured here.
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
                path="data/fashion_mnist",
                crop="pad",
                split="train",
                num_classes=10,
                image_shape=(32, 32, 1),
                random_flip=True,
                num_workers=4,
                worker_timeout_seconds=600.0,
            ),
            model=dict(
                name="unet",
                channels=64,
                multipliers=(1, 2, 2),
                depth=2,
                attention_resolutions=(16, 8),
                num_heads=placeholder(int),
                head_channels=64,
                legacy_attention_order=True,
                scale_shift=True,
                resblock_resample=True,
                learned_resample=True,
                rescale=False,
                dropout=0.1,
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
                learning_rate=2e-4,
                b1=0.9,
                b2=0.999,
                eps=1e-8,
                weight_decay=0.0,
                schedule="constant",
                warmup_steps=500,
                decay_steps=placeholder(int),
                clip_norm=1.0,
            ),
            ema=dict(
                rates=(0.999,),
                warmup=True,
            ),
            train=dict(
                batch_size=128,
                num_steps=60000,
                log_every_steps=100,
                steps_per_dispatch=1,
                accumulate_steps=1,
                max_skipped_in_row=10,
                init_from=placeholder(str),
            ),
            checkpoint=dict(
                every_steps=5000,
                keep_last=3,
                keep_every_steps=20000,
            ),
            sample=dict(
                every_steps=10000,
                labels=tuple(range(10)),
                guidance=(0.0, 1.0, 3.0),
                per_cell=4,
                num_steps=64,
                sampler="ancestral",
                v=0.3,
                eta=0.0,
            ),
            evaluate=dict(
                guidance=(0.0, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 4.0),
                num_samples=10000,
                num_steps=64,
                batch_size=250,
                label_policy="balanced",
                features="classifier",
                classifier="runs/fashion_mnist_classifier",
                reference=placeholder(str),
                every_steps=placeholder(int),
                every_num_samples=1000,
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
