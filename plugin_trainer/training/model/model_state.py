"""What a model's `state_dict` leaves out, and a load that takes back what it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from plugin_trainer.errors import PtrainError


def load_model_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Load a state strictly, but for names that the model itself does not save.

    Raises RuntimeError, as torch does, for tensors that are missing, unknown or of other shapes.
    """
    result = model.load_state_dict(state, strict=False)
    if result is None:  # of a model with a way of its own
        return
    saved = model.state_dict().keys()
    wrong = [f"missing: {name}" for name in result.missing_keys if name in saved]
    wrong += [f"not in the model: {name}" for name in result.unexpected_keys]
    if wrong:
        raise RuntimeError("\n".join(["the state does not fit", *wrong]))


def check_saves_what_it_trains(model: nn.Module) -> None:
    """Raise PtrainError for a model whose state lacks a trainable parameter."""
    saved = {
        value.untyped_storage().data_ptr()
        for value in model.state_dict().values()
        if isinstance(value, Tensor)
    }
    left_out = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.untyped_storage().data_ptr() not in saved
    ]
    if left_out:
        raise PtrainError(
            f"{type(model).__name__}.state_dict() leaves out {len(left_out)} trainable "
            f"parameters, {left_out[0]} the first: the run could not be resumed",
            hint="save them, or freeze them: requires_grad_(False)",
        )
