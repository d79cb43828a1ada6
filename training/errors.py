"""What stops a run, apart from a recipe that is wrong and a checkpoint that is damaged."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""
