"""Launchers: each starts a cfgjax command somewhere, or prints exactly what it would submit."""

from cfgjax.jobs.launch import kubernetes, local, slurm, tpu_vm

LAUNCHERS = {"local": local, "slurm": slurm, "tpu_vm": tpu_vm, "kubernetes": kubernetes}
"""Modules with `define_flags(given)`, and `launch(given, job)`, which returns an exit code."""
