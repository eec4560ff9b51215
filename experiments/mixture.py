"""Three Gaussians in the plane: what guidance does to a density whose exact score is known.

cfgjax train --config=experiments/mixture.py --workdir=runs/mixture

Measured on 2 CPU cores (x86-64, jax 0.10.2): 45 seconds. Losses of the last 500 steps: 0.299 over all examples, 0.286
conditional, 0.421 unconditional.

Each picture in samples/ shows the classes' samples as w grows, from exact scores above and from learned ones below
(the three-Gaussian figure of classifier-free guidance, arXiv:2207.12598).
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config():
    """The experiment, every value present."""
    return ConfigDict(
        dict(
            seed=0,
            data=dict(
                source="mixture",
                means=((0.0, 1.0), (0.866, -0.5), (-0.866, -0.5)),
                stds=(0.4, 0.4, 0.4),
                weights=(1 / 3, 1 / 3, 1 / 3),
                num_examples=30000,
                seed=0,
                split="all",
                num_classes=3,
                image_shape=(2,),
                random_flip=False,
            ),
            model=dict(
                name="mlp",
                width=128,
                depth=3,
            ),
            diffusion=dict(
                schedule="cosine",
                logsnr_min=-20.0,
                logsnr_max=20.0,
                p_uncond=0.1,
            ),
            optimizer=dict(
                name="adamw",
                learning_rate=1e-3,
                b1=0.9,
                b2=0.999,
                eps=1e-8,
                weight_decay=0.0,
                schedule="cosine",
                warmup_steps=100,
                decay_steps=4000,
                clip_norm=1.0,
            ),
            ema=dict(
                rates=(0.999,),
                warmup=True,
            ),
            train=dict(
                batch_size=512,
                num_steps=4000,
                log_every_steps=500,
                steps_per_dispatch=50,
                accumulate_steps=1,
                max_skipped_in_row=10,
                init_from=placeholder(str),
            ),
            checkpoint=dict(
                every_steps=1000,
                keep_last=3,
                keep_every_steps=placeholder(int),
            ),
            sample=dict(
                every_steps=2000,
                labels=(0, 1, 2),
                guidance=(0.0, 1.0, 3.0),
                per_cell=1000,
                num_steps=128,
                sampler="ancestral",
                v=0.3,
                eta=0.0,
            ),
            evaluate=dict(
                guidance=(-0.5, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0),
                num_samples=5000,
                num_steps=256,
                batch_size=250,
                label_policy="balanced",
                features="mixture",
                classifier=placeholder(str),
                reference=placeholder(str),
                every_steps=placeholder(int),
                every_num_samples=1000,
                every_guidance=(0.0, 1.0),
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
