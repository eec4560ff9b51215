"""The sweep of p_uncond.py with three seeds each, so that the spread between trainings is known.

cfgjax train --config=experiments/digits_classifier.py --workdir=runs/digits_classifier
cfgjax sweep --sweep=experiments/sweeps/p_uncond_seeds.py --out=runs/p_uncond_seeds
cfgjax compare runs/p_uncond_seeds --plot=p_uncond_seeds.png

The seed determines the initial parameters, the order of the examples and their noise. The samples of all runs have the
same noise.
"""

import itertools

BASE = "digits"
COMMANDS = ("train", "evaluate")


def get_sweep():
    """Returns [(name, {"config.key": value})], with an entry for each run."""
    same = {"config.evaluate.guidance": (0.0, 0.25, 0.5, 1.0), "config.evaluate.num_samples": 1000}
    return [
        (f"p_uncond={p_uncond},seed={seed}", {"config.diffusion.p_uncond": p_uncond, "config.seed": seed, **same})
        for p_uncond, seed in itertools.product((0.1, 0.2, 0.5), (0, 1, 2))
    ]
