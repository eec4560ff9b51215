"""Networks with parameters, ready to sample, to guide and to predict."""
