"""What notebooks and scripts call: training and evaluating from Python, as the commands do."""
