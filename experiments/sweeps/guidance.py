"""The frontier of one trained network drawn by many machines, a weight w each: those of the tables of classifier-free
guidance (arXiv:2207.12598).

cfgjax train --config=experiments/digits.py --workdir=runs/digits
cfgjax train --config=experiments/digits_classifier.py --workdir=runs/digits_classifier
cfgjax sweep --sweep=experiments/sweeps/guidance.py --workdir=runs/digits --out=runs/digits_guidance
cfgjax compare runs/digits_guidance --plot=guidance.png

Here runs follow one another (--parallel=N: N at a time), with --launcher=slurm they are the tasks of an array. On one
machine `cfgjax evaluate` with all of them is quicker: it compiles once. compare joins the parts into one frontier. Not
measured here.
"""

COMMANDS = ("evaluate",)
GUIDANCE = (*(n / 10 for n in range(11)), 2.0, 3.0, 4.0)


def get_sweep():
    """[{flag of evaluate: value}], a run each."""
    return [{"guidance": w} for w in GUIDANCE]
