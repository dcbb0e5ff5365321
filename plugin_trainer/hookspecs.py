"""The hooks of plugin_trainer, and where in a run each of them is called.

    load      ptrain_models  ptrain_data  ptrain_callbacks  ptrain_schedulers  ptrain_recipes
              ptrain_spaces
    run       ptrain_run_start                    (or ptrain_checkpoint_load first, when resuming)
                one batch of each split: ptrain_move_batch, ptrain_forward     a fresh run only
    epoch       ptrain_epoch_start
    step          ptrain_train_step               firstresult
                    ptrain_move_batch             firstresult, each micro-batch
                    ptrain_forward                firstresult, each micro-batch
                    ptrain_before_optimizer_step
                  ptrain_step_end
    due           evaluate: ptrain_evaluation_start; then ptrain_move_batch, ptrain_forward,
                            ptrain_evaluation_batch_end for each batch and weight set; then
                            ptrain_evaluation_end
    due           ptrain_log
    epoch       ptrain_epoch_end                  after the epoch's last step and its evaluation
    due           save: ptrain_checkpoint_save, then ptrain_checkpoint_committed
    run       ptrain_run_end   or   ptrain_run_failed
    any time  ptrain_artifact                     at each `run.log_artifact`

A plugin is a module (or object) whose functions are named after these hooks; a callback is an
object whose methods are. The prefix is enough; `hookimpl` is needed only to give an option, such as
`@hookimpl(wrapper=True)`. An implementation may leave out arguments it does not use.

What a hook may use of `run`: `settings`, `model`, `data`, `device`, `optimizer`, `ema`, `folder`
(the run folder, a Path), `progress` (`step`, `epoch`, `samples`), `is_dry` (a try of which nothing
is kept), `world` (this process among those that train the run: `rank`, `size`, `is_first`, and
`gather(value)`, which all must call), `log(metrics)` to add numbers to the next log line,
`log_artifact(name, content)` to add a figure or another file to the run, `request_stop(reason)`,
`watch(metric, setting=...)` at the run's start to have it told before the first step that
evaluations give no such metric, and `report(title, text)` to add a section to what the run prints
at its end. Callbacks are called in the order in which the run lists them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from plugin_trainer.outcome import StepOutcome
from plugin_trainer.specs import (
    CallbackSpec,
    DataSpec,
    ModelSpec,
    RecipeSpec,
    SchedulerSpec,
    SpaceSpec,
)

if TYPE_CHECKING:
    import torch

    from plugin_trainer.training.result import Result
    from plugin_trainer.training.run import Run

PROJECT = "ptrain"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

REGISTRATION_HOOKS = (
    "ptrain_models",
    "ptrain_data",
    "ptrain_callbacks",
    "ptrain_schedulers",
    "ptrain_recipes",
    "ptrain_spaces",
)


# ------------------------------------------------------------------ registration: once per plugin


@hookspec
def ptrain_models() -> Iterable[ModelSpec]:  # type: ignore[empty-body]
    """Offer models. Called once when the plugin is loaded; must not import torch."""


@hookspec
def ptrain_data() -> Iterable[DataSpec]:  # type: ignore[empty-body]
    """Offer data modules. Called once when the plugin is loaded; must not import torch."""


@hookspec
def ptrain_callbacks() -> Iterable[CallbackSpec]:  # type: ignore[empty-body]
    """Offer callbacks. Called once when the plugin is loaded; must not import torch."""


@hookspec
def ptrain_schedulers() -> Iterable[SchedulerSpec]:  # type: ignore[empty-body]
    """Offer learning-rate schedules. Called once at load; must not import torch."""


@hookspec
def ptrain_recipes() -> Iterable[RecipeSpec]:  # type: ignore[empty-body]
    """Offer run files. Called once when the plugin is loaded; must not import torch."""


@hookspec
def ptrain_spaces() -> Iterable[SpaceSpec]:  # type: ignore[empty-body]
    """Offer search spaces for `ptrain tune`. Called once at load; must not import torch."""


# -------------------------------------------------- behaviour: exactly one answer, the first given


@hookspec(firstresult=True)
def ptrain_move_batch(run: Run, batch: Any, device: torch.device) -> Any:
    """Put a batch on the device. Every batch, training and evaluation, every process.

    The default moves tensors in dicts, lists, tuples, named tuples and anything with `.to`.
    """


@hookspec(firstresult=True)
def ptrain_forward(run: Run, batch: Any) -> StepOutcome | None:
    """Compute the loss of one micro-batch, on the device. Every batch, training and evaluation.

    Replacing it keeps accumulation, clipping, EMA and the guards. The default calls the model with
    the batch and normalises what it returns. Return None to leave the batch to the next in line.
    """


@hookspec(firstresult=True)
def ptrain_train_step(run: Run, micro_batches: Sequence[Any]) -> StepOutcome | None:
    """Make one optimizer step from its micro-batches. Once per step.

    For those who need the whole step: sharpness-aware minimisation, adversarial training,
    reinforcement learning. The default moves and forwards each micro-batch, accumulates gradients
    over the total valid count, clips, steps the optimizer, the schedule and the EMA.
    """


# ------------------------------------------------------------------- moments: results are ignored


@hookspec
def ptrain_run_start(run: Run) -> None:
    """Training is about to begin, or to go on after a resume. Once per process."""


@hookspec
def ptrain_epoch_start(run: Run) -> None:
    """The first step of an epoch is about to be made. Not again for an epoch resumed midway."""


@hookspec
def ptrain_before_optimizer_step(run: Run) -> None:
    """The gradients of a step are complete: summed over its micro-batches and processes, unscaled,
    not clipped. Every step that the engine makes itself.

    They are in `run.optimizer.param_groups` and may be changed in place; what is clipped, logged as
    train/grad_norm and checked is what is left here. Of a sharded model each process sees its part.
    """


@hookspec
def ptrain_step_end(run: Run, outcome: StepOutcome) -> None:
    """An optimizer step is done and `run.progress` counts it. Every step.

    Tensors are still on the device: reading one (`.item()`) makes the host wait; use `run.log`.
    """


@hookspec
def ptrain_log(run: Run, metrics: MutableMapping[str, float]) -> None:
    """Metrics are about to be written to metrics.jsonl. May add entries.

    Of several processes those of the first are written.

    Every log interval and evaluation.
    """


@hookspec
def ptrain_evaluation_start(run: Run, split: str) -> None:
    """An evaluation is about to begin, of all weight sets. `split` is "val" or "test"."""


@hookspec
def ptrain_evaluation_batch_end(
    run: Run, split: str, weights: str, batch: Any, outcome: StepOutcome
) -> None:
    """One batch was evaluated. `split` is "val" or "test"; `weights` is "raw" or "ema".

    Each of several processes is told of its own batches alone.
    """


@hookspec
def ptrain_evaluation_end(run: Run, split: str, metrics: MutableMapping[str, float]) -> None:
    """An evaluation is done; `metrics` holds val/... and val_ema/..., the same in all processes.

    At the end of a run `split` is "test" once, if there is such data: then they are test/...

    May add entries: of several processes those of the first count, in all of them. May request a
    stop.
    """


@hookspec
def ptrain_epoch_end(run: Run) -> None:
    """The last step of an epoch is done, and the evaluation that fell on it.

    Once per epoch, resumed or not.
    """


@hookspec
def ptrain_checkpoint_save(run: Run, state: MutableMapping[str, Any]) -> None:
    """A checkpoint is being written. Add your state under your own key: JSON values, tensors."""


@hookspec
def ptrain_checkpoint_load(run: Run, state: Mapping[str, Any]) -> None:
    """A run is being resumed. Take back what you put into `state`."""


@hookspec
def ptrain_checkpoint_committed(run: Run, path: Path) -> None:
    """A checkpoint is complete on disk under its final name.

    What is logged here is not part of it: a run that is resumed from it does not know of it.
    """


@hookspec
def ptrain_artifact(run: Run, name: str, path: Path) -> None:
    """A file was added to the run by `run.log_artifact`. In the first process alone."""


@hookspec
def ptrain_run_end(run: Run, result: Result) -> None:
    """The run ended: finished, stopped early or interrupted. Flush and close."""


@hookspec
def ptrain_run_failed(run: Run, error: BaseException) -> None:
    """The run is ending with an error. Flush and close; must not raise."""
