"""Checkpoints on disk, and which of them is the best."""
