"""Data: the contract of a data module, the order of samples, and batches on their way to the model."""

from plugin_trainer.data.module import DataModule, Fed

__all__ = ["DataModule", "Fed"]
