"""Labelled data, and batches that are pure functions of the seed and the step."""
