"""The mathematics: process, guidance, samplers, losses. Knows nothing of networks, files or devices."""
