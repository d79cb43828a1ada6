"""Stages of training: each turns a batch into a loss for the trainer."""
