"""What a training step takes, told before it runs: memory, work, what devices exchange; and a trial of one step."""
