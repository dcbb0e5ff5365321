"""The library: train a plain nn.Module on a plain DataLoader, and load a run that was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from plugin_trainer.configuration import configure
from plugin_trainer.errors import RunFolderError
from plugin_trainer.registry.blame import in_words
from plugin_trainer.settings.layers import Layer
from plugin_trainer.training import inference
from plugin_trainer.training.arguments import (
    check_choice,
    check_fit,
    check_metrics_by_name,
    check_model,
)
from plugin_trainer.training.checkpointing.store import CheckpointStore, read_model_state
from plugin_trainer.training.distributed.init import join
from plugin_trainer.training.execution import execute
from plugin_trainer.training.in_python import hints_in_python
from plugin_trainer.training.inference import LoadedRun, Weights
from plugin_trainer.training.model.criterion import build_criterion
from plugin_trainer.training.model.given_model import unwrapped
from plugin_trainer.training.optim.given_optimizer import optimizer_settings, refuse_scheduler
from plugin_trainer.training.result import BestCheckpoint, Result
from plugin_trainer.training.setup.assemble import AlreadyDone, Resume, assemble

__all__ = ["LoadedRun", "Result", "fit", "load_run"]


@dataclass(frozen=True)
class PlainData:
    """Loaders and metrics made elsewhere, as a data module."""

    train_loader: Any
    validation_loader: Any = None
    test_loader: Any = None
    metrics_by_name: Mapping[str, Any] = field(default_factory=dict)

    def train(self) -> Any:
        """What to train on."""
        return self.train_loader

    def validation(self) -> Any:
        """What to evaluate on; None for no evaluation."""
        return self.validation_loader

    def test(self) -> Any:
        """What to score once at the end; None for nothing."""
        return self.test_loader

    def metrics(self) -> Mapping[str, Any]:
        """The metrics of an evaluation."""
        return self.metrics_by_name


@hints_in_python()
def fit(
    model: nn.Module,
    train: Any,
    validation: Any = None,
    *,
    test: Any = None,
    loss: Callable[[Any, Any], Tensor] | str | None = None,
    metrics: Mapping[str, Any] | None = None,
    callbacks: Sequence[str | object] = (),
    out: str | Path | None = None,
    resume: Resume = "never",
    overwrite: bool = False,
    allow: Sequence[str] = (),
    notify: Callable[[str], None] = print,
    **settings: Any,
) -> Result:
    """Train a model, with everything that a run file gives: checkpoints, exact resume, EMA,
    schedules.

    model       called with each batch: a mapping's entries as keyword arguments, a tuple's as
                positional ones, without the last, the labels, where there is a `loss` to take
                them. Returns a loss, logits, or both
    train       a DataLoader or a Dataset, or any iterable with a length; a DataLoader's random or
                sequential sampler is replaced by a seeded one that can be resumed
    validation  the same, evaluated as val/...
    test        the same, scored once at the end with the best weights, as test/...
    loss        loss(logits, labels), a mean over the rows; or its name, as in a run file. It
                replaces a loss that the model returns beside its logits
    metrics     torchmetrics by name, fed with logits and labels
    callbacks   names as in a run file, or objects with ptrain_... methods; called in this order
    out         the run folder; left out, a new one is made under runs/
    resume      "auto" goes on with the run in `out`, and only gives the result of one that has
                ended; "never" refuses a folder that holds one
    overwrite   delete the run in `out`, and start anew
    allow       settings that may differ from those the run was started with
    notify      is given lines about a resume
    settings    keys of a run file: length="3 epochs", optimizer={"learning_rate": 1e-3},
                ema={"decay": 0.99}. An optimizer object is taken for the settings that describe
                it: the run builds its own

    Raises PtrainError for settings, data or a folder that cannot be used, and for a run that
    failed.
    """
    data = {"train": train, "validation": validation, "test": test}
    check_fit(model, data, metrics, out, resume, settings)
    if isinstance(loss, str):
        settings["loss"], loss = loss, None
    if not isinstance(settings.get("optimizer", ""), (str, Mapping)):
        settings["optimizer"] = optimizer_settings(settings["optimizer"], model)
    if not isinstance(settings.get("schedule", ""), (str, Mapping)):
        refuse_scheduler(settings["schedule"])
    named = [callback for callback in callbacks if isinstance(callback, str)]
    values = {**settings, **({"callbacks": named} if named else {})}
    try:
        run = assemble(
            configure(Layer("fit", values), parts=False),
            out=Path(out) if out is not None else None,
            resume=resume,
            overwrite=overwrite,
            allow=allow,
            notify=notify,
            model=model,
            data=PlainData(train, validation, test, metrics or {}),
            criterion=loss,
            callbacks=callbacks,
        )
    except AlreadyDone as done:
        if join().is_first:
            notify(f"{done.folder} is {done.about['status']} already: {done.about['reason']}")
        return _result_of(done, model)
    # Not what is inside, if the model came compiled or otherwise wrapped.
    return replace(execute(run), model=model)


@hints_in_python()
def load_run(
    run: str | Path,
    *,
    checkpoint: str = "",
    weights: Weights = "raw",
    device: str = "auto",
    overrides: Layer | None = None,
    callbacks: Sequence[object] = (),
    model: nn.Module | None = None,
    validation: Any = None,
    test: Any = None,
    loss: Callable[[Any, Any], Tensor] | str | None = None,
    metrics: Mapping[str, Any] | None = None,
    trust: bool = False,
) -> LoadedRun:
    """Load a run from its folder, or from its name under runs/, to evaluate and to predict with.

    checkpoint  "best", "last" or "step-N"; left out, the best one of the weights, else the last
    weights     "raw" or "ema"
    overrides   settings that go over the run's own, such as another validation file
    callbacks   objects with ptrain_... methods, in place of the run's own callbacks
    model       for a run of `fit`: an object like the one that was trained, which gets the weights
    validation, test, loss, metrics   for a run of `fit`, what `evaluate` needs, as `fit` takes it;
                                      a loss that `fit` was given by its name is known
    trust       load the code that a run folder of somebody else's names

    Raises UntrustedRun before any such code is loaded, and PtrainError if the run, its plugins or
    the checkpoint cannot be used.
    """
    check_choice("weights", weights, ("raw", "ema"))
    if model is not None:
        check_model(model)
    check_metrics_by_name(metrics)
    brings_data = any(part is not None for part in (validation, test, metrics))
    return inference.load_run(
        run,
        checkpoint=checkpoint,
        weights=weights,
        device=device,
        overrides=overrides,
        callbacks=callbacks,
        model=model,
        data=PlainData(None, validation, test, metrics or {}) if brings_data else None,
        criterion=build_criterion(loss),
        trust=trust,
    )


def _result_of(done: AlreadyDone, model: nn.Module) -> Result:
    """How a run ended that was trained before, the model as that left it."""
    about = done.about
    which = "best" if about.get("restored_best") else "last"
    found = CheckpointStore(done.folder).find(which)
    inner, _ = unwrapped(model)
    inner.eval()
    inner.load_state_dict(read_model_state(found.path, weights="raw"), strict=False)
    try:
        return Result(
            status=about["status"],
            reason=about["reason"],
            step=about["step"],
            epoch=about["epoch"],
            samples=about["samples"],
            metrics=about["metrics"],
            best={weights: BestCheckpoint(**best) for weights, best in about["best"].items()},
            folder=done.folder,
            model=model,
            seconds=0.0,
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{done.folder / 'run.json'} does not say how the run ended: {in_words(error)}",
            hint="copy the whole run folder again",
        ) from error
