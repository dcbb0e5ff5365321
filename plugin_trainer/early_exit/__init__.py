"""Adaptive depth: run an encoder block by block, and stop where a rule lets a row leave."""
