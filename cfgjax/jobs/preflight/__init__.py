"""Reports the memory, FLOPs and communication of a training step before it runs, and can run one real step."""
