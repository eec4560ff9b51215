"""How often labels are dropped: p_uncond of 0.1, 0.2 and 0.5, as in classifier-free guidance (arXiv:2207.12598), and
the frontier of each.

cfgjax train --config=experiments/digits_classifier.py --workdir=runs/digits_classifier
cfgjax sweep --sweep=experiments/sweeps/p_uncond.py --out=runs/p_uncond
cfgjax compare runs/p_uncond --plot=p_uncond.png

The first trains the feature network that the frontiers of the digits are measured with. The paper's own runs are those
of --base=experiments/imagenet64.py (after which compare has --targets=cfg_imagenet64). Not measured here.
"""

BASE = "experiments/digits.py"
COMMANDS = ("train", "evaluate")


def get_sweep():
    """[{"config.key": value}], a run each."""
    return [{"config.diffusion.p_uncond": p_uncond} for p_uncond in (0.1, 0.2, 0.5)]
