"""What processes tell each other within a step: it travels with the gradients."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from plugin_trainer.outcome import StepOutcome
from plugin_trainer.training.distributed.world import PeerFailed

SIZE = 4

# Where the host would have to wait for a device to see what the others want, it looks this often.
_LOOK_EVERY = 8


def told(outcome: StepOutcome, *, stop: bool) -> Tensor:
    """Of one micro-batch: items, their summed loss, whether to stop, whether this process has
    failed. Shape: [4], float32.
    """
    loss, device = outcome.loss.detach().float(), outcome.loss.device
    items = torch.as_tensor(outcome.count, device=device, dtype=torch.float32)
    flags = torch.tensor([stop, False], device=device, dtype=torch.float32)
    return torch.cat((torch.stack((items, torch.where(items == 0, 0.0, loss * items))), flags))


def having_failed(device: torch.device) -> Tensor:
    """What a process tells that cannot go on."""
    return torch.tensor([0.0, 0.0, 0.0, 1.0], device=device)


def total(count: int | Tensor, device: torch.device) -> Tensor:
    """The items of all processes: an exchange of its own, within a step."""
    items = torch.as_tensor(count, device=device, dtype=torch.float32).clone()
    dist.all_reduce(items)
    return items


def has_no_item(outcome: StepOutcome) -> bool:
    """Whether an outcome is over no item, as far as the host knows without waiting."""
    count = outcome.count
    on_host = not isinstance(count, Tensor) or count.device.type == "cpu"
    return on_host and int(count) == 0


class Heard:
    """Reads what all have told: at each step where that costs nothing.

    stop_wanted  whether, as of the step just made, any process wants to stop
    """

    def __init__(self, device: torch.device) -> None:
        self._every = 1 if device.type == "cpu" else _LOOK_EVERY
        self._steps = 0
        self.stop_wanted = False

    @property
    def looks_in(self) -> int:
        """After how many more exchanges it looks, as all processes do."""
        return self._every - self._steps % self._every

    def listen(self, words: Tensor) -> None:
        """Take in the sum over all processes. Raises PeerFailed if one has failed."""
        self._steps += 1
        self.stop_wanted = False
        if self._steps % self._every == 0:
            _, _, stop, failed = words.tolist()
            if failed:
                raise PeerFailed
            self.stop_wanted = stop > 0
