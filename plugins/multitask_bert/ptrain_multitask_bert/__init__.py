"""One encoder, any number of tasks and heads."""

__version__ = "0.1.0"
