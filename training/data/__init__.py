"""Training samples out of recordings; every draw is a function of (seed, stage, step)."""
