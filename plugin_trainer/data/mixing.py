"""Which task gives the next batch of a mixture: a pure function of strategy, seed and epoch.

A mixed epoch is planned in two steps: how many batches each task gives to it (its quota), and the
order of these. Every cursor follows from that plan, so that a mixture resumes as exactly as one
loader does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from plugin_trainer.data.order import derive_seed

Strategy = Literal["round_robin", "proportional", "temperature"]


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """How tasks are mixed.

    strategy     "round_robin": one batch of each task in turn, a task that has none left drops out.
                 "proportional": every batch of every task once, in a random order.
                 "temperature": as many batches as that, shared out by size ** (1 / temperature)
    temperature  1 is proportional; the higher, the more evenly tasks of unlike sizes are drawn
    until        for round_robin, what ends an epoch: "all" tasks are used up, or the "first" is
    """

    strategy: Strategy = "round_robin"
    temperature: float = 2.0
    until: Literal["all", "first"] = "all"

    def quotas(self, lengths: Sequence[int]) -> list[int]:
        """The batches that each task gives to a mixed epoch, from those of its own epochs."""
        if self.strategy == "proportional":
            return list(lengths)
        if self.strategy == "temperature":
            return _shared_out(sum(lengths), [size ** (1 / self.temperature) for size in lengths])
        return [min(lengths)] * len(lengths) if self.until == "first" else list(lengths)

    def order(self, quotas: Sequence[int], *, seed: int, epoch: int) -> Tensor:
        """The task of every batch of a mixed epoch, as positions in `quotas`: int16 [sum(quotas)].

        The one of a round robin is the same in every epoch; the others are drawn from a generator
        of the epoch.
        """
        tasks = torch.repeat_interleave(torch.arange(len(quotas)), torch.tensor(quotas))
        if self.strategy == "round_robin":
            rounds = torch.cat([torch.arange(quota) for quota in quotas])
            return tasks[torch.argsort(rounds, stable=True)].to(torch.int16)
        generator = torch.Generator().manual_seed(derive_seed(seed, "mixture", epoch))
        return tasks[torch.randperm(len(tasks), generator=generator)].to(torch.int16)


def _shared_out(total: int, weights: Sequence[float]) -> list[int]:
    """`total` things in proportion to weights, by largest remainders; nobody goes without."""
    exact = [total * weight / sum(weights) for weight in weights]
    shares = [max(1, int(share)) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: int(exact[i]) - exact[i])
    for i in by_remainder[: max(0, total - sum(shares))]:
        shares[i] += 1
    return shares


def warnings_of(quotas: dict[str, int], mixing: Mixing) -> list[str]:
    """What in a plan will starve a task, or teach one alone long enough to forget the others."""
    total = sum(quotas.values())
    fair = total / len(quotas)
    lines = [
        f"task '{task}' is starved: {quota} of {total} batches of an epoch, less than a tenth of "
        "an even share; a higher [mixture] temperature gives it more"
        for task, quota in quotas.items()
        if quota < fair / 10
    ]
    if mixing.strategy == "round_robin" and len(quotas) > 1:
        second, first = sorted(quotas.values())[-2:]
        if first - second > total / 5:
            largest = max(quotas, key=lambda task: quotas[task])
            lines.append(
                f"task '{largest}' ends every epoch alone, for its last {first - second} of "
                f'{total} batches; [mixture] strategy = "temperature" or "proportional" would not'
            )
    return lines
