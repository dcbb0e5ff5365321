"""The loss of a model's logits: looked up, and checked before the first step."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from plugin_trainer.errors import PtrainError
from plugin_trainer.registry.building import import_target

Criterion = Callable[[Any, Any], Tensor]

Activation = Literal["", "sigmoid", "softmax"]
"""What makes probabilities of logits; empty where nothing says that they are logits."""

_ACTIVATIONS: dict[str, Activation] = {
    "BCEWithLogitsLoss": "sigmoid",
    "binary_cross_entropy_with_logits": "sigmoid",
    "MultiLabelSoftMarginLoss": "sigmoid",
    "multilabel_soft_margin_loss": "sigmoid",
    "CrossEntropyLoss": "softmax",
    "cross_entropy": "softmax",
    "multi_label_classification": "sigmoid",
    "single_label_classification": "softmax",
}
"""By the name of torch's loss, or by what a model of transformers calls its problem."""


def build_criterion(
    loss: str | Criterion | None, *, model: nn.Module | None = None
) -> Criterion | None:
    """The loss that the settings name, or one that was made elsewhere; None for none.

    model  whose parameters the loss may hold too

    Raises PtrainError if torch.nn has no such class, and for a loss that cannot be trained with.
    """
    if loss is None or (isinstance(loss, str) and not loss):
        return None
    criterion = _named(loss) if isinstance(loss, str) else loss
    if isinstance(criterion, type):
        criterion = _made(criterion)
    _check(criterion, model)
    return criterion


def is_known_mean(criterion: Criterion) -> bool:
    """Whether the loss says itself that it is a mean."""
    return _reduction_of(criterion) == "mean"


def activation_of(criterion: Criterion | None, model: nn.Module) -> Activation:
    """What makes probabilities of the model's logits, as far as its loss says or it does."""
    if criterion is not None:
        return _ACTIVATIONS.get(_name_of(criterion), "")
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    return _ACTIVATIONS.get(problem or "", "")


def _named(name: str) -> Any:
    if ":" in name:
        return import_target(name)
    cls = getattr(nn, name, None)
    if not (name.endswith("Loss") and isinstance(cls, type) and issubclass(cls, nn.Module)):
        losses = sorted(key for key in vars(nn) if key.endswith("Loss"))
        raise PtrainError(
            f"loss: torch.nn has no loss '{name}'",
            hint=[
                f"there are: {', '.join(losses)}",
                "any function works too: package.module:function",
            ],
        )
    return cls


def _made(cls: type) -> Any:
    try:
        return cls()
    except TypeError as error:
        raise PtrainError(
            f"loss: {cls.__name__} cannot be made without arguments: {error}",
            hint="name a function, or a class whose arguments all have defaults",
        ) from error


def _reduction_of(criterion: Any) -> Any:
    """That of a module, or the default of a function's argument; None where neither is."""
    if isinstance(criterion, nn.Module):
        return getattr(criterion, "reduction", None)
    try:
        argument = inspect.signature(criterion).parameters.get("reduction")
    except (TypeError, ValueError):  # some functions in C have no signature
        return None
    return argument.default if argument is not None else None


def _check(criterion: Any, model: nn.Module | None) -> None:
    """Refuse what would be trained wrongly without a word."""
    if not callable(criterion):
        raise PtrainError(
            f"loss: {type(criterion).__name__} cannot be called",
            hint="pass a function or a module: loss(logits, labels)",
        )
    reduction = _reduction_of(criterion)
    if reduction in ("sum", "none"):
        raise not_a_mean(f"the reduction of {_name_of(criterion)} is '{reduction}'")
    if not isinstance(criterion, nn.Module):
        return
    trained = set(model.parameters()) if model is not None else set()
    trainable = [
        name for name, p in criterion.named_parameters() if p.requires_grad and p not in trained
    ]
    if trainable:
        raise PtrainError(
            f"loss: {type(criterion).__name__} has parameters ({', '.join(trainable)}), and a run "
            "trains those of its model alone",
            hint="make it a part of the model: self.loss = ..., and return {'loss': ..., 'logits': "
            "...} from forward; then they are trained, saved and resumed",
        )


def not_a_mean(what: str) -> PtrainError:
    """The error for a loss that is no mean over the rows of its batch."""
    return PtrainError(
        f"loss: {what}, and a run needs the mean: accumulated batches, several processes and "
        "evaluations are weighted by rows",
        hint="use reduction='mean'. With SGD, B times the learning rate makes the steps that a sum "
        "over B rows made",
    )


def _name_of(criterion: Any) -> str:
    if isinstance(criterion, partial):
        return _name_of(criterion.func)
    if isinstance(criterion, nn.Module):
        return type(criterion).__name__
    return getattr(criterion, "__name__", type(criterion).__name__)
