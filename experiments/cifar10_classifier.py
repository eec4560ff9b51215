"""A classifier of CIFAR-10, 32×32: features and accuracy in `cfgjax evaluate` for experiments/cifar10.py.

cfgjax prepare tfds cifar10 data/cifar10 --size=32
cfgjax train --config=experiments/cifar10_classifier.py --workdir=runs/cifar10_classifier

Every sixth image is held out. The hyper-parameters are this project's own. Not measured here.
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
                split="train",
                num_classes=10,
                image_shape=(32, 32, 3),
                random_flip=True,
                num_workers=2,
                worker_timeout_seconds=600.0,
            ),
            model=dict(
                name="convnet",
                channels=64,
                multipliers=(1, 2, 4),
                depth=2,
                num_features=256,
                dropout=0.5,
            ),
            optimizer=dict(
                name="adamw",
                learning_rate=2e-3,
                b1=0.9,
                b2=0.999,
                eps=1e-8,
                weight_decay=0.05,
                schedule="cosine",
                warmup_steps=200,
                decay_steps=12000,
                clip_norm=1.0,
            ),
            ema=dict(
                rates=(0.999,),
                warmup=True,
            ),
            train=dict(
                batch_size=128,
                num_steps=12000,
                log_every_steps=100,
                steps_per_dispatch=10,
                accumulate_steps=1,
                max_skipped_in_row=10,
                init_from=placeholder(str),
            ),
            checkpoint=dict(
                every_steps=500,
                keep_last=3,
                keep_every_steps=placeholder(int),
            ),
            evaluate=dict(
                every_steps=500,
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
