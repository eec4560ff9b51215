"""Feature networks and what is known of their features on reference data."""
