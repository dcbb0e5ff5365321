"""DACT-BERT: an encoder that learns how many of its blocks each input needs."""

__version__ = "0.1.0"
