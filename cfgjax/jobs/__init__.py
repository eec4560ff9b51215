"""Jobs on clusters: launching, sweeping, and what a step needs before it runs."""
