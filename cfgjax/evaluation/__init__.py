"""Looking at what a model draws."""
