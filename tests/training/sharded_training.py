"""A small model whose shapes divide by nothing, trained alone or sharded by the engine's parts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from plugin_trainer.settings import GroupSettings, OptimizerSettings
from plugin_trainer.training.checkpointing.store import Snapshot
from plugin_trainer.training.distributed.sharding import LocalShards, local_norm_squared, shard
from plugin_trainer.training.optim.ema import Ema
from plugin_trainer.training.optim.optimizers import (
    build_optimizer,
    freeze,
    load_optimizer_state,
    optimizer_state,
)
from plugin_trainer.training.optim.update import Update, build_update

VOCABULARY, WIDTH = 11, 5
ROWS = 7  # of a micro-batch: two processes and three have unequal shares
ACCUMULATED = 2
GROUPS = {
    "blocks.*.narrow.*": GroupSettings(learning_rate=0.02),
    "frozen": GroupSettings(frozen=True),
}
MAX_NORM = 0.5


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(WIDTH, 2 * WIDTH + 1)
        self.narrow = nn.Linear(2 * WIDTH + 1, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.narrow(torch.relu(self.wide(x))))


class Net(nn.Module):
    """Tied weights, a frozen parameter, one of a single row, buffers, and three blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.again = self.scale  # tied, and most processes have no row of it
        self.frozen = nn.Parameter(torch.randn(3, WIDTH))
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("shift", torch.full((WIDTH,), 0.1))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += 1
        x = self.embedding(tokens) + self.frozen.mean(0) + self.shift
        for block in self.blocks:
            x = block(x)
        return self.head(x) * self.scale


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, VOCABULARY, (ROWS, 4), generator=generator)
    return tokens, (3 * tokens + 1) % VOCABULARY


def loss_sum(model: nn.Module, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(
        model(tokens).flatten(0, 1), labels.flatten(), reduction="sum"
    )


@dataclass
class Training:
    """A run's parts, with or without shards."""

    model: nn.Module
    shards: LocalShards | None
    optimizer: torch.optim.Optimizer
    ema: Ema
    update: Update
    rank: int = 0
    size: int = 1
    step: int = 0

    def go_on(self, until: int) -> list[float]:
        """The loss of the whole batch at each step."""
        return [self._step() for _ in range(self.step, until)]

    def _step(self) -> float:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for parameter in parameters:
            parameter.grad = None
        total = torch.zeros((), dtype=torch.float64)
        for number in range(ACCUMULATED):
            tokens, labels = batch(self.step * ACCUMULATED + number)
            mine = slice(self.rank, None, self.size)
            if self.shards is not None:
                self.model.set_requires_gradient_sync(number == ACCUMULATED - 1)
            loss = loss_sum(self.model, tokens[mine], labels[mine])
            # FSDP2 takes the mean over the processes.
            (loss * self.size / (ACCUMULATED * labels.numel())).backward()
            total += loss.detach() / (ACCUMULATED * labels.numel())
        if self.shards is not None:
            self.shards.take_gradients()
            assert all(p.grad is None for p in self.model.parameters())
        norm = self.update.measure()
        if self.shards is not None:
            squared = local_norm_squared([p.grad for p in parameters if p.grad is not None])
            assert math.isclose(squared.item(), norm.double().item() ** 2, rel_tol=1e-6)
            dist.all_reduce(squared)
            dist.all_reduce(total)
            norm = squared.sqrt().to(norm.dtype)
        self.update.apply(norm)
        self.step += 1
        return total.item()

    @torch.no_grad()
    def evaluate(self) -> float:
        tokens, labels = batch(1000)
        self.model.eval()
        loss = loss_sum(self.model, tokens, labels).item() / labels.numel()
        self.model.train()
        return loss

    def evaluate_both(self) -> tuple[float, float, float]:
        """With the raw weights, with the average, and with the raw ones again."""
        raw = self.evaluate()
        with self.ema.applied():
            average = self.evaluate()
        return raw, average, self.evaluate()

    def snapshot(self) -> Snapshot:
        tensors, rest = optimizer_state(self.optimizer, self.model, shards=self.shards)
        state = {"optimizer": rest, "ema": self.ema.counters(), "step": self.step}
        return Snapshot(dict(self.model.state_dict()), self.ema.state_dict(), tensors, state)

    def restore(self, snapshot: Snapshot) -> None:
        self.model.load_state_dict(snapshot.model)
        rest = snapshot.state["optimizer"]
        load_optimizer_state(
            self.optimizer, self.model, snapshot.optimizer, rest, shards=self.shards
        )
        assert snapshot.ema is not None
        self.ema.load_state_dict(snapshot.ema, updates=snapshot.state["ema"]["updates"])
        self.step = snapshot.state["step"]


def start(
    optimizer: str = "adamw", mesh=None, *, prepare=lambda model: None, **settings
) -> Training:
    """A run at step 0: sharded over a mesh, or whole."""
    torch.manual_seed(0)
    model = Net()
    freeze(model, GROUPS)
    prepare(model)
    shards = None
    if mesh is not None:
        shard(model, mesh)
        shards = LocalShards(model)
    chosen = OptimizerSettings(
        name=optimizer, learning_rate=0.05, groups=GROUPS, max_grad_norm=MAX_NORM, settings=settings
    )
    built = build_optimizer(model, chosen, shards=shards)
    ema = Ema(model, decay=0.7, warmup=False, shards=shards)
    update = build_update(built, max_norm=MAX_NORM, ema=ema, guard=None)
    where = {} if mesh is None else {"rank": mesh.get_rank(), "size": mesh.size()}
    return Training(model, shards, built, ema, update, **where)


def whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Sharded tensors, gathered."""
    return {
        name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        for name, tensor in tensors.items()
    }
