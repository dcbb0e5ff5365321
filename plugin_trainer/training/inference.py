"""A trained run, loaded for evaluation and prediction from its folder alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from plugin_trainer.configuration import configure
from plugin_trainer.configuration.admission import admit
from plugin_trainer.data.evaluated import METHODS, given_by
from plugin_trainer.early_exit.calibration import key_of, key_of_task, read_calibration
from plugin_trainer.early_exit.choice import tasks_with_exits, use_exit
from plugin_trainer.early_exit.windows import AnswersWindows, windows
from plugin_trainer.errors import CheckpointError, DataError, PtrainError
from plugin_trainer.registry.blame import hint_for
from plugin_trainer.run_assets import sound_assets
from plugin_trainer.run_folder import find_run
from plugin_trainer.settings import RunSettings
from plugin_trainer.settings.layers import Layer, read_toml
from plugin_trainer.training.checkpointing.store import CheckpointStore, Found, read_model_state
from plugin_trainer.training.distributed.world import ALONE, World
from plugin_trainer.training.evaluation import end_evaluation, score
from plugin_trainer.training.hooks import RunHooks
from plugin_trainer.training.model.criterion import Criterion, build_criterion
from plugin_trainer.training.model.forward import Forward
from plugin_trainer.training.model.model_state import load_model_state
from plugin_trainer.training.optim.precision import Precision, pick_precision
from plugin_trainer.training.progress import Progress
from plugin_trainer.training.setup.assemble import build_part, make_hooks, pick_device
from plugin_trainer.training.setup.of_fit import is_of_fit, refuse_run_of_fit

Weights = Literal["raw", "ema"]

_LINES_AT_ONCE = 1024


class Lines(list[str]):
    """Some lines of an input, and the number of the first of them, for messages."""

    def __init__(self, lines: Iterable[str] = (), *, first_line: int = 1) -> None:
        super().__init__(lines)
        self.first_line = first_line


@dataclass(eq=False, kw_only=True)
class LoadedRun:
    """The model of a run, its data module and its settings.

    model  with the checkpoint's raw or EMA weights, in evaluation mode, on the device
    """

    folder: Path
    checkpoint: Found
    weights: Weights
    settings: RunSettings
    model: nn.Module
    data: Any
    device: torch.device
    forward: Forward
    precision: Precision
    hooks: RunHooks
    progress: Progress
    loaders: dict[str, Any] = field(default_factory=dict)
    ema: None = None
    world: World = ALONE
    is_dry: bool = False
    _in_windows: bool = field(default=False, init=False)

    # What a plugin's hooks may call in an evaluation: outside of a run nothing comes of it.

    def log(self, metrics: Mapping[str, Any]) -> None:
        """There is no log."""

    def log_artifact(self, name: str, content: Any) -> None:
        """A run that was trained stays as it is."""

    def request_stop(self, reason: str) -> None:
        """There is nothing to stop."""

    def report(self, title: str, text: str) -> None:
        """There is no end to report at."""

    # ---------------------------------------------------------------------------- what it does

    def use_exit(self, exit_: str) -> None:
        """Leave early: "off", "lossless", a promise such as "1%", or a level such as "4.5".

        Raises PtrainError for a model without exits, and for what was not calibrated.
        """
        checkpoint = self.checkpoint.path
        key = key_of(checkpoint, self.weights)
        calibrations = {
            task: read_calibration(self.folder, key_of_task(key, task))
            for task in tasks_with_exits(self.model)
        }
        where = f"{self.folder} --checkpoint {checkpoint.name} --weights {self.weights}"
        use_exit(self.model, exit_, calibrations, precision=self.precision.name, where=where)
        # A GPU would rather have large batches.
        on_cpu = self.device.type == "cpu"
        self._in_windows = on_cpu and exit_ != "off" and isinstance(self.model, AnswersWindows)

    def evaluate(self, split: str = "val") -> dict[str, float]:
        """The metrics of a split: "val" or "test". Raises DataError if the data module has none."""
        self.loaders[split] = self._loader(split)
        self.hooks.evaluation_start(run=self, split=split)
        metrics = score(self, split=split, weights=self.weights)
        end_evaluation(self, split, metrics)
        return metrics

    def _loader(self, split: str) -> Any:
        method = METHODS.get(split, split)
        is_there = method in ("train", "validation", "test") and hasattr(self.data, method)
        loader = given_by(self.data, method) if is_there else None
        if loader is None and not self.settings.data:
            raise DataError(
                f"the run has no data for the split '{method}'",
                hint=f"it is one of plugin_trainer.fit: load_run(..., {method}=LOADER)",
            )
        if loader is None:
            there = [name for name in ("validation", "test", "train") if self._has(name)]
            raise DataError(
                f"the run has no data for the split '{method}'",
                hint=f"it has data for: {', '.join(there) or 'none'}; where these are files, name "
                f"another with --set data_settings.{method}=FILE",
            )
        return loader

    def _has(self, method: str) -> bool:
        try:
            return hasattr(self.data, method) and getattr(self.data, method)() is not None
        except PtrainError:  # its file is gone
            return False

    def predict(self, lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
        """One mapping a line, in order. Raises DataError if the data module cannot predict."""
        if not (hasattr(self.data, "predict") and hasattr(self.data, "decode")):
            raise PtrainError(
                f"the data module {self.settings.data} cannot predict"
                if self.settings.data
                else "a run of plugin_trainer.fit has no data module that could predict",
                hint="it needs the methods predict(lines) and decode(outputs, batch)"
                if self.settings.data
                else "call its model with a batch: load_run(...).model(...)",
            )
        remaining, first_line = iter(lines), getattr(lines, "first_line", 1)
        while some := Lines(islice(remaining, _LINES_AT_ONCE), first_line=first_line):
            first_line += len(some)
            try:
                yield from self._predicted(some)
            except PtrainError:
                raise
            except Exception as error:
                raise DataError(
                    f"{self.settings.data} or {self.settings.model} failed to predict, somewhere "
                    f"in lines {some.first_line} to {first_line - 1}",
                    hint=hint_for(error),
                ) from error

    def _predicted(self, some: Lines) -> Iterator[Mapping[str, Any]]:
        out_of_order: dict[int, Mapping[str, Any]] = {}
        predicted = self.data.predict(some)
        for batches in windows(predicted) if self._in_windows else ([one] for one in predicted):
            moved = [
                self.hooks.move_batch(run=self, batch=batch, device=self.device)
                for batch in batches
            ]
            for batch, outputs in zip(moved, self._outputs(moved), strict=True):
                answers = self.data.decode(outputs, batch)
                if isinstance(batch, Mapping) and "line" in batch:
                    out_of_order.update(zip(batch["line"].tolist(), answers, strict=True))
                else:
                    yield from answers
        yield from (out_of_order[line] for line in sorted(out_of_order))

    def _outputs(self, batches: Sequence[Any]) -> Sequence[Mapping[str, Any]]:
        with torch.no_grad(), self.precision.autocast():
            if self._in_windows:
                model: Any = self.model
                answers: Sequence[Mapping[str, Any]] = model.answer_window(batches)
                return answers
            return [self.forward.outputs(batch) for batch in batches]


def load_run(
    run: str | Path,
    *,
    checkpoint: str = "",
    weights: Weights = "raw",
    device: str = "auto",
    overrides: Layer | None = None,
    callbacks: Sequence[object] = (),
    model: nn.Module | None = None,
    data: Any = None,
    criterion: Criterion | None = None,
    trust: bool = False,
) -> LoadedRun:
    """Load a run from its folder, or from its name under runs/.

    checkpoint  "best", "last" or "step-N"; left out, the best one of the weights, else the last
    weights     "raw" or "ema"
    overrides   settings that go over the run's own, such as another validation file
    callbacks   objects with ptrain_... methods, in place of the run's own callbacks
    model, data, criterion   objects made elsewhere, in place of the configured ones: a run of `fit`
                             has none
    trust       load the code that a run folder of somebody else's names

    Raises UntrustedRun before any such code is loaded, and PtrainError if the run, its plugins or
    the checkpoint cannot be used.
    """
    folder = find_run(str(run))
    written = read_toml(folder / "run.toml")
    if model is None:
        refuse_run_of_fit(folder, written)
    admit(folder, written, overrides=overrides, trust=trust)
    configuration = configure(written, overrides=overrides, parts=not is_of_fit(written))
    store = CheckpointStore(folder)

    def read() -> tuple[Found, dict[str, Any]]:
        found = store.choose(checkpoint, weights=weights)
        return found, read_model_state(found.path, weights=weights)

    found, state = store.reading(read)  # now: building the model takes a while
    assets = sound_assets(folder)
    if data is None and not is_of_fit(written):
        data = build_part(configuration.data, assets=assets)
    if model is None:
        model = build_part(configuration.model, data=data, assets=assets)
    _load(model, found, state)
    settings = configuration.settings
    where = pick_device(device if device != "auto" else settings.device)
    model.to(where).eval()
    return LoadedRun(
        folder=folder,
        checkpoint=found,
        weights=weights,
        settings=settings,
        model=model,
        data=data,
        device=where,
        forward=Forward(
            model,
            criterion=build_criterion(settings.loss if criterion is None else criterion),
            label=settings.label,
        ),
        precision=pick_precision(settings.precision, where),
        hooks=make_hooks(configuration, callbacks=callbacks, configured=False),
        progress=Progress(step=found.step),
    )


def _load(model: nn.Module, found: Found, state: Mapping[str, Any]) -> None:
    try:
        load_model_state(model, state)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights of {found.path} do not fit the model {type(model).__name__}",
            hint=[line.strip() for line in str(error).splitlines()[1:4]],
        ) from error
