"""A run on disk: its config, workdir and checkpoints."""
