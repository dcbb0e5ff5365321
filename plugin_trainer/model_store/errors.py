"""What the model store says when it cannot do what it was asked."""

from __future__ import annotations

from plugin_trainer.errors import PtrainError


class StoreError(PtrainError):
    """A model, a version or an alias that is not there, a name that none may have, or a store that
    cannot be read or written.
    """
