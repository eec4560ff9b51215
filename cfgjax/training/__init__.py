"""Training: state, optimizer, averages, the step, checkpoints and the loop that joins them."""
