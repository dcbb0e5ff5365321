"""What core offers. Imports no torch, as every plugin's hook module."""

from __future__ import annotations

from plugin_trainer.specs import CallbackSpec, SchedulerSpec

PTRAIN_API = 1

_HERE = "plugin_trainer.callbacks"
_MODEL_STORE = "plugin_trainer.model_store"
_SCHEDULES = "plugin_trainer.training.optim.schedules"


def ptrain_callbacks() -> list[CallbackSpec]:
    """The callbacks of every run, and those to be asked for."""
    return [
        CallbackSpec(
            name="progress_bar",
            target=f"{_HERE}.progress_bar:ProgressBar",
            settings=f"{_HERE}.settings:ProgressBarSettings",
            summary="a bar on a terminal, plain lines elsewhere",
            default=True,
            last=True,
            writes=True,
        ),
        CallbackSpec(
            name="learning_rate_monitor",
            target=f"{_HERE}.learning_rate_monitor:LearningRateMonitor",
            settings=f"{_HERE}.settings:LearningRateMonitorSettings",
            summary="adds the learning rate to each log line",
            default=True,
        ),
        CallbackSpec(
            name="tensorboard",
            target=f"{_HERE}.tensorboard:TensorBoard",
            settings=f"{_HERE}.settings:TensorBoardSettings",
            summary="writes every logged number for TensorBoard",
            default=True,
            last=True,
            requires=("tensorboard",),
            writes=True,
        ),
        CallbackSpec(
            name="early_stopping",
            target=f"{_HERE}.early_stopping:EarlyStopping",
            settings=f"{_HERE}.settings:EarlyStoppingSettings",
            summary="stops a run whose evaluations no longer improve",
        ),
        CallbackSpec(
            name="early_exit",
            target=f"{_HERE}.early_exit:EarlyExit",
            settings=f"{_HERE}.settings:EarlyExitSettings",
            summary="at the end of a run, certifies how early rows may leave",
            writes=True,
        ),
        CallbackSpec(
            name="profiler",
            target=f"{_HERE}.profiler:Profiler",
            settings=f"{_HERE}.settings:ProfilerSettings",
            summary="records a few steps with torch.profiler: a trace and a table",
            writes=True,
        ),
        CallbackSpec(
            name="register_best",
            target=f"{_MODEL_STORE}.register_best:RegisterBest",
            settings=f"{_MODEL_STORE}.settings:RegisterBestSettings",
            summary="makes the best checkpoint a version in the model store",
            last=True,  # what early_exit calibrated goes with the weights
            writes=True,
        ),
    ]


def ptrain_schedulers() -> list[SchedulerSpec]:
    """Learning-rate schedules; each may stand behind a warm-up."""
    return [
        SchedulerSpec(
            name="linear",
            target=f"{_SCHEDULES}:linear",
            settings="plugin_trainer.settings.schedules:DecaySettings",
            summary="a straight line down to final_factor",
        ),
        SchedulerSpec(
            name="cosine",
            target=f"{_SCHEDULES}:cosine",
            settings="plugin_trainer.settings.schedules:DecaySettings",
            summary="half a cosine down to final_factor",
        ),
        SchedulerSpec(
            name="constant",
            target=f"{_SCHEDULES}:constant",
            settings="plugin_trainer.settings.schedules:NoSettings",
            summary="the learning rate as it is",
        ),
    ]
