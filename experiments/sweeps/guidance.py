"""The frontier of one trained network, with a run for each weight w in the tables of classifier-free guidance
(arXiv:2207.12598). The runs can be distributed over many machines.

cfgjax train --config=experiments/digits.py --workdir=runs/digits
cfgjax train --config=experiments/digits_classifier.py --workdir=runs/digits_classifier
cfgjax sweep --sweep=experiments/sweeps/guidance.py --workdir=runs/digits --out=runs/digits_guidance
cfgjax compare runs/digits_guidance --plot=guidance.png

By default the runs are executed one after the other; --parallel=N executes N at a time. With --launcher=slurm they are
the tasks of an array. On a single machine, `cfgjax evaluate` with all weights is faster, because it compiles only once.
`cfgjax compare` joins the parts into one frontier. Not measured here.
"""

COMMANDS = ("evaluate",)
GUIDANCE = (*(n / 10 for n in range(11)), 2.0, 3.0, 4.0)


def get_sweep():
    """Returns [{flag of evaluate: value}], with an entry for each run."""
    return [{"guidance": w} for w in GUIDANCE]
