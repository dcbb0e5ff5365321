"""What a step of several processes exchanges, by the profiler: `python counting.py FILE`."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from plugin_trainer import fit

FIRST, LAST = 4, 9


class Net(nn.Module):
    """Three blocks; all of it fits into one bucket of gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, inputs: Tensor) -> Tensor:
        for block in self.blocks:
            inputs = torch.tanh(block(inputs))
        return inputs


class Counting:
    """Profiles the steps from FIRST to LAST; of them nothing is logged, evaluated or saved."""

    def __init__(self) -> None:
        self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
        self.counts: Counter[str] = Counter()

    def ptrain_step_end(self, run: Any) -> None:
        if run.progress.step == FIRST - 1:
            self.profiler.start()
        if run.progress.step == LAST:
            self.profiler.stop()
            for event in self.profiler.events():
                if event.name.startswith(("gloo:", "nccl:")):
                    self.counts[event.name] += 1


def count(strategy: str, **settings: Any) -> dict[str, float]:
    """How often each collective is made in a step."""
    counting = Counting()
    rows = TensorDataset(torch.randn(400, 8), torch.randint(8, (400,)))
    fit(
        Net(), rows, rows, loss="CrossEntropyLoss", callbacks=[counting], batch_size=8,
        length="12 steps", log="11 steps", save="11 steps", evaluate="11 steps",
        ema={"decay": 0.9}, optimizer={"max_grad_norm": 1.0},
        parallel={"strategy": strategy}, **settings,
    )  # fmt: skip
    return {name: number / (LAST - FIRST + 1) for name, number in counting.counts.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    told = {
        "ddp": count("ddp"),
        "ddp, accumulated": count("ddp", accumulate=2),
        "fsdp2": count("fsdp2"),
    }
    if os.environ["RANK"] == "0":
        Path(sys.argv[1]).write_text(json.dumps(told))
