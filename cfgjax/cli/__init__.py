"""The commands: each takes its words of the command line and returns an exit code."""
