"""Trains with p_uncond of 0.1, 0.2 and 0.5, as in classifier-free guidance (arXiv:2207.12598), and measures the
frontier of each.

cfgjax train --config=experiments/digits_classifier.py --workdir=runs/digits_classifier
cfgjax sweep --sweep=experiments/sweeps/p_uncond.py --out=runs/p_uncond
cfgjax compare runs/p_uncond --plot=p_uncond.png

The first command trains the feature network, with which the frontiers of the digits are measured. For the runs of the
paper, pass --base=experiments/imagenet64.py to `cfgjax sweep` and --targets=cfg_imagenet64 to `cfgjax compare`. Not
measured here.
"""

BASE = "digits"
COMMANDS = ("train", "evaluate")


def get_sweep():
    """Returns [{"config.key": value}], with an entry for each run."""
    return [{"config.diffusion.p_uncond": p_uncond} for p_uncond in (0.1, 0.2, 0.5)]
