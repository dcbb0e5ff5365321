"""The model store: trained models under names and versions, their files kept by hash.

    models/
      registry.sqlite     names, versions, aliases, tags, and which files a version has
      artifacts/3f/3f9a…  every file once, named by its SHA-256, never changed

Imports no torch until a model is registered or loaded.
"""

from __future__ import annotations

from plugin_trainer.model_store.errors import StoreError
from plugin_trainer.model_store.store import Registered, Store
from plugin_trainer.model_store.versions import Version

__all__ = ["Registered", "Store", "StoreError", "Version"]
