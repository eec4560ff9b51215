"""Sweeps: a file lists runs by their overrides; they run here, several at a time, or as an array of Slurm."""
