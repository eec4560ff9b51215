"""Sweeps: a file lists runs by their overrides. They run on this machine or as a Slurm array."""
