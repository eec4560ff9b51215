"""Data sources: where examples come from."""
