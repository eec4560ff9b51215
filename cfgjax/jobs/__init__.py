"""Jobs on clusters: launchers, sweeps, and the preflight of a training step."""
