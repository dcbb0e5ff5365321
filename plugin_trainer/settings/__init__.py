"""Settings: what may be said (schema), where it was said (layers), is it right (validation)."""

from plugin_trainer.settings.schema import (
    BestSettings,
    CompileSettings,
    EmaSettings,
    GroupSettings,
    InitSettings,
    OptimizerSettings,
    RunSettings,
    ScheduleSettings,
)

__all__ = [
    "BestSettings",
    "CompileSettings",
    "EmaSettings",
    "GroupSettings",
    "InitSettings",
    "OptimizerSettings",
    "RunSettings",
    "ScheduleSettings",
]
