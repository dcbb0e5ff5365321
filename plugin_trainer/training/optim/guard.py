"""Keeps what is not finite out of the weights: stops the run at a NaN or an infinity, by its step.

Three guards, for what each costs. `AtOnce` looks at every step before the weights move: on a CPU
that is free, on a device one host read a step. `Latched` is for optimizers that take a flag on the
device (torch's fused ones and ours): from the first bad step on, the flag masks every update, and
the host looks at it only when something is logged or saved. `Scaled` is for fp16, where gradients
that overflow are a matter of course: such a step is skipped and the loss scale lowered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from plugin_trainer.data.batches import IGNORED_LABEL
from plugin_trainer.errors import NonFiniteError
from plugin_trainer.ops import FusedAdamW
from plugin_trainer.outcome import StepOutcome

# A run that neither logs nor saves is looked at this often, so that what is kept stays small.
_AT_MOST = 1024
_NUMPY_HAS = (torch.float32, torch.float64)
# Each skipped step halves the loss scale: after so many in a row it is not the scale.
_SKIPPED_IN_A_ROW = 24


class Guard(Protocol):
    """Looks at the loss and the gradient norm of each step before the weights move."""

    skipped: int
    """Steps that were not applied, since the run began."""

    def passes(self, outcome: StepOutcome, grad_norm: Tensor, *, step: int) -> bool:
        """Whether to apply the step. Raises NonFiniteError if the run cannot go on."""
        ...

    def settle(self) -> None:
        """Raise NonFiniteError if a step since the last time was not finite."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        ...


class AtOnce:
    """Stops before the weights are touched."""

    skipped = 0

    def passes(self, outcome: StepOutcome, grad_norm: Tensor, *, step: int) -> bool:
        """Raise NonFiniteError for a step that is not finite."""
        if not _are_finite(outcome.loss.detach(), grad_norm):
            raise _non_finite(outcome, grad_norm, step=step, untouched=True)
        return True

    def settle(self) -> None:
        """Nothing can be left over."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing is kept."""


class Latched:
    """Masks the optimizer on the device from the first bad step on; reads when it has to settle."""

    skipped = 0

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.found = torch.zeros((), device=device)
        self._one = torch.ones((), device=device)
        self._since: list[tuple[int, StepOutcome, Tensor]] = []
        # What torch's fused optimizers look for: they leave everything as it is where it is 1.
        optimizer.grad_scale, optimizer.found_inf = None, self.found

    def passes(self, outcome: StepOutcome, grad_norm: Tensor, *, step: int) -> bool:
        """Set the flag, on the device, if the step is not finite."""
        total = outcome.loss.detach() + grad_norm
        if total.dtype not in _NUMPY_HAS:
            total = total.float()
        # In one launch: found = 1 where `total` is not finite, and otherwise as it was.
        torch._amp_foreach_non_finite_check_and_unscale_([total], self.found, self._one)
        kept = StepOutcome(outcome.loss.detach(), count=outcome.count)
        self._since.append((step, kept, grad_norm))
        if len(self._since) >= _AT_MOST:
            self.settle()
        return True

    def settle(self) -> None:
        """Read the flag; raise NonFiniteError with the first step that set it."""
        since, self._since = self._since, []
        if not since or not self.found.item():
            return
        for step, outcome, grad_norm in since:
            if not math.isfinite((outcome.loss + grad_norm).item()):
                raise _non_finite(outcome, grad_norm, step=step, untouched=False)

    def state_dict(self) -> dict[str, Any]:
        """Nothing is kept: nothing is saved while the flag is set."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing is kept."""


class Scaled:
    """Skips steps whose gradients overflowed under the loss scale. Reads one number a step."""

    def __init__(self, scaler: torch.amp.GradScaler) -> None:
        self._scaler = scaler
        self.skipped = 0
        self._in_a_row = 0

    def passes(self, outcome: StepOutcome, grad_norm: Tensor, *, step: int) -> bool:
        """Whether the gradients are finite; moves the loss scale."""
        # The loss is not scaled: if it is not finite, no scale will help.
        loss = outcome.loss.detach()
        both = torch.stack((loss.float(), grad_norm.float()))
        loss_value, norm = both.tolist()
        self._scaler.update()
        if math.isfinite(loss_value) and math.isfinite(norm):
            self._in_a_row = 0
            return True
        self.skipped += 1
        self._in_a_row += 1
        if not math.isfinite(loss_value) or self._in_a_row >= _SKIPPED_IN_A_ROW:
            raise _non_finite(outcome, grad_norm, step=step, untouched=True)
        return False

    def settle(self) -> None:
        """Nothing can be left over."""

    def state_dict(self) -> dict[str, Any]:
        """The loss scale and how it grows, and what was skipped."""
        return {
            "scaler": self._scaler.state_dict(),
            "skipped": self.skipped,
            "in_a_row": self._in_a_row,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back; a run that was not in fp16 before begins with a scale of its own."""
        if "scaler" in state:
            self._scaler.load_state_dict(dict(state["scaler"]))
            self.skipped, self._in_a_row = state["skipped"], state["in_a_row"]


def build_guard(
    optimizer: torch.optim.Optimizer, device: torch.device, scaler: torch.amp.GradScaler | None
) -> Guard:
    """The cheapest guard that this optimizer and this device allow."""
    if scaler is not None:
        return Scaled(scaler)
    takes_flag = getattr(optimizer, "_step_supports_amp_scaling", False)
    if device.type != "cpu" and (takes_flag or isinstance(optimizer, FusedAdamW)):
        return Latched(optimizer, device)
    return AtOnce()


def _are_finite(loss: Tensor, norm: Tensor) -> bool:
    if loss.dtype in _NUMPY_HAS and norm.dtype in _NUMPY_HAS and loss.device.type == "cpu":
        # Where they lie; nothing has to be waited for.
        return math.isfinite(loss.numpy()) and math.isfinite(norm.numpy())
    return math.isfinite((loss + norm).item())


def _non_finite(
    outcome: StepOutcome, grad_norm: Tensor, *, step: int, untouched: bool
) -> NonFiniteError:
    loss, norm = outcome.loss.item(), grad_norm.item()
    metrics = {"train/loss": loss, "train/grad_norm": norm}
    if not int(outcome.count):
        return NonFiniteError(
            f"step {step}: no item of its batch has a label, so there is no loss",
            metrics=metrics,
            step=step,
            hint=f"every label is {IGNORED_LABEL}; leave such samples out of the training data",
        )
    return NonFiniteError(
        f"step {step}: the loss is {loss:g} and the gradient norm {norm:g}",
        metrics=metrics,
        step=step,
        hint=[
            "the step was not applied; the weights are those of the step before"
            if untouched
            else "neither that step nor any after it was applied",
            "try a lower optimizer.learning_rate, a longer schedule.warmup, or "
            "optimizer.max_grad_norm = 1.0",
        ],
    )
