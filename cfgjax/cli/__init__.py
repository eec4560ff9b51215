"""The commands. Each takes its command-line words and returns an exit code."""
