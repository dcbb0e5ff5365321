"""From a batch to a StepOutcome: call the model, and understand whatever it returns."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from plugin_trainer.data.batches import IGNORED_LABEL, count_rows, count_valid, find_labels
from plugin_trainer.errors import DataError, PtrainError
from plugin_trainer.outcome import StepOutcome
from plugin_trainer.training.model.criterion import (
    Activation,
    Criterion,
    activation_of,
    is_known_mean,
)


class Forward:
    """Calls one model with batches of any common shape.

    A mapping is passed as keyword arguments, as far as the model's forward takes them; a tuple or
    list as positional ones, its last entry being the labels; anything else as the one argument.

    criterion  the loss of the model's logits: criterion(logits, labels). It replaces a loss that
               the model returns beside them, and a tensor without a name is the logits then,
               whatever its shape
    label      the batch's key that holds the labels; empty to look for it
    compiled   the model compiled, to be called in its place
    notify     is given a line for the user
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        criterion: Criterion | None = None,
        label: str = "",
        compiled: Callable[..., Any] | None = None,
        notify: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._own = model
        self._model = model if compiled is None else compiled
        self._criterion = criterion
        self._label = label
        ignored = getattr(criterion, "ignore_index", None)
        self._ignored = ignored if isinstance(ignored, int) else IGNORED_LABEL
        self._predicts_next = _predicts_next(model)
        self._accepted, self._accepts_all = _keywords_of(model)
        self._positional = _positional_of(model)
        self._notify = notify
        self._replaces_loss = False
        self.not_passed: set[str] = set()
        """Keys of batches that the model's forward does not take."""
        self.assumes_mean = False
        """Whether nothing said that the last loss is a mean over its rows."""

    @property
    def criterion(self) -> Criterion | None:
        """The loss for a model that returns logits."""
        return self._criterion

    def __call__(self, batch: Any) -> StepOutcome:
        """The loss of a batch, and everything beside it.

        Raises DataError or PtrainError, naming what was seen, if no loss can be made of it.
        """
        found = find_labels(batch, key=self._label)
        returned = self._call(batch, found)
        if isinstance(returned, StepOutcome):
            if self._criterion is not None:
                raise _makes_its_own_loss(self._own)
            return returned
        fields = self._fields_of(returned)
        own = fields.get("loss") is not None
        if own and self._criterion is not None:
            self._replace_loss(fields)
            own = False
        if not own:
            fields["loss"] = self._loss_of(fields, batch, found)
        self.assumes_mean = fields.get("count") is None and (
            self._criterion is None or not is_known_mean(self._criterion)
        )
        if fields.get("count") is None:
            fields["count"] = self._count(batch, found, own=own)
        return _outcome(fields)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The model, and the loss if it is a module."""
        criterion = self._criterion
        return (self._own, criterion) if isinstance(criterion, nn.Module) else (self._own,)

    def loss_state(self) -> dict[str, Any]:
        """The buffers of a loss that is a module."""
        criterion = self._criterion
        return dict(criterion.named_buffers()) if isinstance(criterion, nn.Module) else {}

    def load_loss_state(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        for name, buffer in self.loss_state().items():
            if name in state:
                buffer.copy_(state[name])

    @property
    def activation(self) -> Activation:
        """What makes probabilities of the logits, as far as the loss or the model says."""
        return activation_of(self._criterion, self._own)

    def _replace_loss(self, fields: Mapping[str, Any]) -> None:
        if fields.get("logits") is None:
            raise _makes_its_own_loss(self._own)
        if not self._replaces_loss:
            self._replaces_loss = True
            self._notify("the run's loss replaces the one that the model returns")

    def outputs(self, batch: Any) -> dict[str, Any]:
        """Everything the model returns for a batch without labels, by name."""
        returned = self._call(batch, None)
        if isinstance(returned, StepOutcome):
            return dict(returned.outputs)
        return self._fields_of(returned)

    def _fields_of(self, returned: Any) -> dict[str, Any]:
        return _fields_of(returned, all_logits=self._criterion is not None)

    def _call(self, batch: Any, found: tuple[str, Any] | None) -> Any:
        if isinstance(batch, Mapping):
            return self._model(**self._arguments(batch))
        if isinstance(batch, (list, tuple)):
            with_labels = found is not None and self._criterion is not None
            entries = batch[:-1] if with_labels else batch
            if len(entries) > self._positional:
                raise PtrainError(
                    f"the batch has {len(entries)} entries, and the model's forward takes no more "
                    f"than {self._positional}",
                    hint="give the run a loss, and the last entry is the labels: "
                    'loss = "CrossEntropyLoss"',
                )
            return self._model(*entries)
        return self._model(batch)

    def _arguments(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        if self._accepts_all:
            return dict(batch)
        arguments = {name: value for name, value in batch.items() if name in self._accepted}
        if "labels" in self._accepted - batch.keys() and "label" not in self._accepted:
            # What data sets call `label` is `labels` to the models of transformers.
            arguments.update({"labels": batch["label"]} if "label" in batch else {})
        if not arguments:
            raise DataError(
                f"the model's forward takes none of the batch's keys: {', '.join(map(str, batch))}",
                hint=f"it takes: {', '.join(sorted(self._accepted)) or 'nothing'}",
            )
        self.not_passed.update(name for name in batch if name not in self._accepted)
        return arguments

    def _loss_of(
        self, fields: Mapping[str, Any], batch: Any, found: tuple[str, Any] | None
    ) -> Tensor:
        logits = fields.get("logits")
        if self._criterion is None or logits is None:
            raise PtrainError(
                f"the model returned no loss, only: {', '.join(fields) or 'nothing'}",
                hint=[
                    "return a mapping with a 'loss', or give the run a loss for the logits:",
                    'loss = "CrossEntropyLoss", or fit(..., loss=torch.nn.CrossEntropyLoss())',
                ],
            )
        if found is None:
            seen = (
                ", ".join(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
            )
            raise DataError(
                f"the batch has no labels; it has: {seen}",
                hint="call them labels, label or labels_<head>, or set `label` to their key",
            )
        labels = found[1]
        one = isinstance(logits, Tensor) and logits.dim() == 0
        if one and isinstance(labels, Tensor) and labels.numel() > 1:
            raise PtrainError(
                f"the model returned one number for {labels.numel()} labels, which is taken for "
                "the logits where the run has a loss",
                hint="if it is the model's own loss, return {'loss': loss}, or leave the run's out",
            )
        return self._criterion(logits, labels)

    def _count(self, batch: Any, found: tuple[str, Any] | None, *, own: bool) -> int | Tensor:
        """How many items the loss is a mean over.

        own  whether the model made it itself
        """
        if found is None:
            return count_rows(batch)
        labels = found[1]
        if not own:
            return count_valid(labels, ignored=self._ignored)
        if self._predicts_next and isinstance(labels, Tensor) and labels.dim() > 0:
            labels = labels[..., 1:]
        return count_valid(labels)


def _predicts_next(model: nn.Module) -> bool:
    """Whether a model's own loss is that of transformers' causal language models.

    It shifts the labels: the first of each row is predicted by nothing. No class name tells which
    models use it (the decoders of some encoder-decoders do not), but their forward does.
    """
    model = _underneath(model)
    code = getattr(inspect.unwrap(type(model).forward), "__code__", None)
    if code is None or "loss_function" not in code.co_names:
        return False
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    loss = getattr(model, "loss_function", None)
    return getattr(loss, "__name__", "") == "ForCausalLMLoss"


def _makes_its_own_loss(model: nn.Module) -> PtrainError:
    return PtrainError(
        f"the run has a loss, and {type(model).__name__} returns its own without logits",
        hint="leave out the run's loss, or return the logits too: {'loss': loss, 'logits': logits}",
    )


def _underneath(model: nn.Module) -> nn.Module:
    """The model under an adapter such as LoRA's, which passes on whatever it is called with."""
    base: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base


def _keywords_of(model: nn.Module) -> tuple[set[str], bool]:
    parameters = inspect.signature(_underneath(model).forward).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return set(), True
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {parameter.name for parameter in parameters if parameter.kind in named}, False


def _positional_of(model: nn.Module) -> float:
    """How many positional arguments the model's forward takes."""
    parameters = inspect.signature(_underneath(model).forward).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
        return math.inf
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in positional for parameter in parameters)


def _fields_of(returned: Any, *, all_logits: bool) -> dict[str, Any]:
    """What a model returned, by name: its own names, else `loss` and `logits` by shape.

    all_logits  what has no name is no loss: logits may have the shape of one too, such as those of
                a batch of one row, squeezed
    """
    if isinstance(returned, Mapping):
        return dict(returned)
    if isinstance(returned, tuple) and {"loss", "logits"} & set(getattr(returned, "_fields", ())):
        return returned._asdict()  # type: ignore[attr-defined]
    if isinstance(returned, Tensor):
        returned = (returned,)
    if isinstance(returned, (list, tuple)) and returned and isinstance(returned[0], Tensor):
        rest: Sequence[Any] = returned[1:]
        if returned[0].dim() == 0 and not all_logits:
            return {"loss": returned[0], **({"logits": rest[0]} if rest else {})}
        return {"logits": returned[0]}
    if hasattr(returned, "loss") or hasattr(returned, "logits"):
        return {name: value for name, value in vars(returned).items() if not name.startswith("_")}
    raise PtrainError(
        f"the model returned a {type(returned).__name__}",
        hint="return a mapping with loss or logits, a tensor, or a tuple of them",
    )


def _outcome(fields: dict[str, Any]) -> StepOutcome:
    loss = fields.pop("loss")
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise PtrainError(
            f"the loss is not one number but {shape}",
            hint="reduce it to its mean: reduction='mean'",
        )
    return StepOutcome(
        loss=loss,
        parts=fields.pop("parts", None) or {},
        count=fields.pop("count"),
        metrics=fields.pop("metrics", None) or {},
        outputs=fields,
    )
