"""Reinforcement learning: deep Q-learning in gymnasium environments."""

__version__ = "0.1.0"
