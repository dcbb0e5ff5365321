"""Which task gives the next batch of a mixture: a pure function of strategy, seed and epoch.

A mixed epoch is planned in two steps: how many batches each task gives to it (its quota), and the
order of these. Every cursor follows from that plan, so that a mixture resumes as exactly as one
loader does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from plugin_trainer.data.order import derive_seed

Strategy = Literal["round_robin", "proportional", "temperature"]

_NAMED = 3
"""So many starved tasks get a line each, or a name in the line of all."""


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
        of the epoch. Two bytes a batch: ten million batches are 20 MB.
        """
        if self.strategy == "round_robin":
            return torch.cat(list(_rounds(torch.tensor(quotas))))
        tasks = torch.arange(len(quotas), dtype=torch.int16).repeat_interleave(torch.tensor(quotas))
        generator = torch.Generator().manual_seed(derive_seed(seed, "mixture", epoch))
        return tasks[torch.randperm(len(tasks), generator=generator)]

    def limited(self, quotas: Sequence[int], limit: int) -> list[int]:
        """Of a mixed epoch that ends after `limit` batches, those of each task; where the order is
        drawn, what they come to on average.
        """
        if self.strategy == "round_robin":
            first = self.order(quotas, seed=0, epoch=0)[:limit]
            return torch.bincount(first, minlength=len(quotas)).tolist()
        return _shared_out(limit, quotas, least=0)


def _rounds(quotas: Tensor) -> Iterator[Tensor]:
    """The rounds of a round robin, those with the same tasks in one piece: int16."""
    done = 0
    for quota in quotas.unique().tolist():  # ascending
        live = (quotas > done).nonzero()[:, 0].to(torch.int16)
        yield live.repeat(quota - done)
        done = quota


def _shared_out(total: int, weights: Sequence[float], *, least: int = 1) -> list[int]:
    """`total` things in proportion to weights, by largest remainders; each gets `least` or more."""
    exact = [total * weight / sum(weights) for weight in weights]
    shares = [max(least, int(share)) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: int(exact[i]) - exact[i])
    for i in by_remainder[: max(0, total - sum(shares))]:
        shares[i] += 1
    return shares


def warnings_of(quotas: Mapping[str, int], mixing: Mixing) -> list[str]:
    """What in a plan will starve a task, or teach one alone long enough to forget the others, and
    which setting changes nothing.
    """
    total = sum(quotas.values())
    starved = [task for task, quota in quotas.items() if quota * len(quotas) * 10 < total]
    lines = list(_of_the_starved(starved, quotas, mixing))
    if mixing.strategy == "round_robin" and len(quotas) > 1:
        second, first = sorted(quotas.values())[-2:]
        if first - second > total / 5:
            largest = max(quotas, key=lambda task: quotas[task])
            lines.append(
                f"task '{largest}' ends every epoch alone, for its last {first - second} of "
                f'{total} batches; [mixture] strategy = "temperature" or "proportional" would not'
            )
    if mixing.strategy != "temperature" and mixing.temperature != Mixing.temperature:
        lines.append(
            f"[mixture] temperature = {mixing.temperature:g} changes nothing: the strategy is "
            f'"{mixing.strategy}"'
        )
    if mixing.strategy != "round_robin" and mixing.until != Mixing.until:
        lines.append(
            f'[mixture] until = "{mixing.until}" changes nothing: the strategy is '
            f'"{mixing.strategy}"'
        )
    return lines


def _of_the_starved(
    starved: Sequence[str], quotas: Mapping[str, int], mixing: Mixing
) -> Iterator[str]:
    """A line for each, or one for all of them where they are many."""
    total = sum(quotas.values())
    fewer = "less than a tenth of an even share"
    more = (
        "a higher [mixture] temperature gives {} more"
        if mixing.strategy == "temperature"
        else '[mixture] strategy = "temperature" gives {} more'
    )
    if len(starved) <= _NAMED:
        for task in starved:
            yield (
                f"task '{task}' is starved: {quotas[task]} of {total} batches of an epoch, {fewer};"
                f" {more.format('it')}"
            )
        return
    named = ", ".join(f"'{task}'" for task in starved[:_NAMED])
    yield (
        f"{len(starved)} of {len(quotas)} tasks are starved, with {fewer} of the {total} batches of"
        f" an epoch each: {named} and {len(starved) - _NAMED} more; {more.format('them')}"
    )
