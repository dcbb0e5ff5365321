"""A run that compiles nothing does not import the compiler; one that does has it as torch means."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

RUN = """
import sys, torch
from torch.utils.data import DataLoader, TensorDataset
import plugin_trainer

def fit(out, **settings):
    data = DataLoader(TensorDataset(torch.ones(8, 4), torch.ones(8).long()), batch_size=4)
    return plugin_trainer.fit(
        torch.nn.Linear(4, 2), data, data, loss="CrossEntropyLoss", ema={"decay": 0.9},
        callbacks=["-tensorboard"], out=out, length="4 steps", save="2 steps", **settings,
    )

fit("run")
fit("run", resume="auto", allow=["length"])
"""

# torch.compile must skip the methods of optimizers, as torch has told it to.
SKIPPED = """
import torch._dynamo

torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1.0).zero_grad()
made = getattr(torch.optim.Optimizer.zero_grad.__wrapped__, "__dynamo_disable")
print(made._torchdynamo_disable)
"""


def test_a_run_without_compile_leaves_dynamo_out_and_changes_nothing_for_who_imports_it(tmp_path):
    imported = "print([name for name in sys.modules if name.startswith('torch._dynamo')])"
    command = [sys.executable, "-c", RUN + imported + SKIPPED]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-2:] == ["[]", "True"], done.stderr
