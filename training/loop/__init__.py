"""The training loop: steps, checkpoints, several processes, warnings, progress."""
