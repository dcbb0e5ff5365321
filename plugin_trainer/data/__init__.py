"""Data: the contract of a data module, the order of samples, batches on their way to a model."""

from plugin_trainer.data.module import DataModule, Fed

__all__ = ["DataModule", "Fed"]
