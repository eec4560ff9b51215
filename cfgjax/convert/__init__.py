"""Converts published checkpoints to cfgjax's networks, and back."""
