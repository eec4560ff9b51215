"""Tables, figures and comparisons of evaluations."""
