"""A classifier of Fashion-MNIST, 32×32: the feature network of `cfgjax evaluate` for experiments/fashion_mnist.py.

cfgjax prepare tfds fashion_mnist data/fashion_mnist --size=32 --crop=pad --channels=1
cfgjax train --config=experiments/fashion_mnist_classifier.py --workdir=runs/fashion_mnist_classifier

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
                path="data/fashion_mnist",
                crop="pad",
                split="train",
                num_classes=10,
                image_shape=(32, 32, 1),
                random_flip=True,
                num_workers=2,
                worker_timeout_seconds=600.0,
            ),
            model=dict(
                name="convnet",
                channels=32,
                multipliers=(1, 2, 4),
                depth=1,
                num_features=128,
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
                decay_steps=4000,
                clip_norm=1.0,
            ),
            ema=dict(
                rates=(0.999,),
                warmup=True,
            ),
            train=dict(
                batch_size=128,
                num_steps=4000,
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
