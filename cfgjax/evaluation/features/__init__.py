"""Feature networks, and statistics of their features on reference data."""
