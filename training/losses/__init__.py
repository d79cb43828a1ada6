"""Losses as pure functions of tensors; each names the paper and section it comes from."""
