"""The metrics: Fréchet and kernel distances, Inception Score, precision and recall, of features or logits.

They are importable from here: `from cfgjax.evaluation.metrics import frechet_distance`.
"""
