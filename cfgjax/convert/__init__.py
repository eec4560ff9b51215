"""Published checkpoints → ours."""
