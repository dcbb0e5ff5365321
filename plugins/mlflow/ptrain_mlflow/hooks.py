"""What this plugin offers; imports neither torch nor mlflow."""

from __future__ import annotations

from plugin_trainer import CallbackSpec

PTRAIN_API = 1


def ptrain_callbacks() -> list[CallbackSpec]:
    """One callback, which a run that names this plugin has."""
    return [
        CallbackSpec(
            name="logger",
            target="ptrain_mlflow.logger:MlflowLogger",
            settings="ptrain_mlflow.settings:LoggerSettings",
            summary="settings, metrics and files in MLflow: a local store, or a server",
            default=True,
            last=True,
            writes=True,
        )
    ]
