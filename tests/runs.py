"""Runs trained inside the test's own process, on one device."""

import json

import jax

from cfgjax.runs.workdir import Claim
from cfgjax.training.loop import fit
from cfgjax.training.run import Run


class StopAfter:
    """In place of StopRequest: a signal from the k-th time on that it is asked for."""

    def __init__(self, times):
        self._times = times

    @property
    def signal(self):
        self._times -= 1
        return "SIGTERM" if self._times < 1 else None


def train(config, workdir, stops=(), *, ends=True, devices=1, allow_changes=()):
    """`loop.train` without pictures; stopped after so many dispatches, for each of stops, and resumed.

    ends: whether it goes on to its end after the last of stops.
    """
    run = Run(config, devices=jax.devices()[:devices])
    run.config_hooks = [hook for hook in run.config_hooks if hook.section == "evaluate"]
    for times in (*stops, 1000) if ends else stops:
        claim = Claim(workdir, run.settings, run.data_hash, run.dataset.classes, allow_changes)
        try:
            assert fit(run, claim, StopAfter(times)).done == (times == 1000)
        finally:
            claim.close()


def metrics(workdir):
    """The lines of metrics.jsonl without the speed."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]
