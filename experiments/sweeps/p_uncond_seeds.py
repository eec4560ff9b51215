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
    """Returns [{"config.key": value}], with an entry for each run."""
    runs = itertools.product((0.1, 0.2, 0.5), (0, 1, 2))
    return [{"config.diffusion.p_uncond": p_uncond, "config.seed": seed} for p_uncond, seed in runs]
