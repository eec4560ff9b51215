"""Evaluation: measures and compares the samples of models."""
