"""A whole training step of an encoder with an exit at every block, with and without the kernels.

The encoder has MiniLM-L6's shape, and random weights; a batch is 8 texts of 32 tokens. All variants
begin at the same weights and see the same batch; dropout is off, so that they can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from plugin_trainer.ops.bench import ema, halting
from plugin_trainer.ops.bench.interleaved import RelativeError, Variant, measure
from plugin_trainer.ops.bench.shapes import MINILM
from plugin_trainer.ops.step import FusedAdamW

from .device import announce, synchronizer
from .results import Section, fastest, named, slower_by, timed_table

BATCH, TOKENS, CLASSES = 8, 32, 3
LEARNING_RATE, MAX_NORM, DECAY = 1e-4, 1.0, 0.99
STEPS_COMPARED = 3

DEFAULT = "AdamW, clip_grad_norm_, foreach EMA"
FUSED = "AdamW fused, clip_grad_norm_, foreach EMA"
FUSED_SWA = "AdamW fused, clip_grad_norm_, swa EMA"
OURS = "ours"
OURS_ZEROED = "ours, gradients zeroed in the pass"
NAMES = (OURS, OURS_ZEROED, DEFAULT, FUSED, FUSED_SWA)

# Of the movement of three steps. A gradient that is zero but for rounding (of a key's bias, say)
# moves its weight by the whole learning rate in either direction.
TOLERANCES = {False: 5e-3, True: 5e-2}
WANTED = {False: (1.4, 1.03), True: (1.7, 1.1)}


class Exits(nn.Module):
    """A BERT encoder with a classifier and a halting unit after each block."""

    def __init__(self) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        self.encoder = BertModel(
            BertConfig(
                vocab_size=MINILM.vocabulary,
                hidden_size=MINILM.hidden,
                num_hidden_layers=MINILM.layers,
                num_attention_heads=12,
                intermediate_size=MINILM.intermediate,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            ),
            add_pooling_layer=False,
        )
        blocks = range(MINILM.layers)
        self.classifiers = nn.ModuleList(nn.Linear(MINILM.hidden, CLASSES) for _ in blocks)
        self.halting = nn.ModuleList(nn.Linear(MINILM.hidden, 1) for _ in blocks)

    def forward(self, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits [N, B, C] and halting logits [N, B], in float32."""
        states = self.encoder(ids_BT, output_hidden_states=True).hidden_states[1:]
        firsts = [state_BTH[:, 0] for state_BTH in states]
        logits = [head(first) for head, first in zip(self.classifiers, firsts, strict=True)]
        go_on = [head(first).squeeze(-1) for head, first in zip(self.halting, firsts, strict=True)]
        return torch.stack(logits).float(), torch.stack(go_on).float()


class Loop:
    """One variant: a model, and what is done with it in a step."""

    def __init__(self, name: str, *, autocast: bool, device: str) -> None:
        torch.manual_seed(0)
        self.name, self.autocast, self.device = name, autocast, device
        self.model = Exits().to(device).train()
        self.parameters = list(self.model.parameters())
        self.shadows = [parameter.detach().clone() for parameter in self.parameters]
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(MINILM.vocabulary, (BATCH, TOKENS), generator=generator)
        labels = torch.randint(CLASSES, (BATCH,), generator=generator)
        self.ids_BT, self.labels_B = ids.to(device), labels.to(device)
        ours = name.startswith(OURS)
        self.loss = halting.our_loss if ours else halting.log_space
        self.update = self._ours() if ours else self._torchs()

    def _ours(self) -> Callable[[], object]:
        keeps = self.name == OURS_ZEROED
        optimizer = FusedAdamW(
            self.parameters, lr=LEARNING_RATE, max_norm=MAX_NORM, zero_grads=keeps
        )
        optimizer.attach_average(dict(zip(self.parameters, self.shadows, strict=True)))
        optimizer.average_decay = DECAY
        if keeps:
            return optimizer.step

        def update() -> None:
            optimizer.step()
            optimizer.zero_grad()

        return update

    def _torchs(self) -> Callable[[], object]:
        optimizer = torch.optim.AdamW(
            self.parameters, lr=LEARNING_RATE, fused=None if self.name == DEFAULT else True
        )
        weights = [parameter.detach() for parameter in self.parameters]

        def lerp() -> None:
            torch._foreach_lerp_(self.shadows, weights, 1 - DECAY)

        swa = self.name == FUSED_SWA
        average = ema.swa(self.shadows, weights, decay=DECAY) if swa else lerp

        def update() -> None:
            clip_grad_norm_(self.parameters, MAX_NORM)
            optimizer.step()
            average()
            optimizer.zero_grad()

        return update

    def step(self) -> Tensor:
        """Forward, backward, update."""
        mixed: AbstractContextManager[object] = (
            torch.autocast(self.device, dtype=torch.bfloat16) if self.autocast else nullcontext()
        )
        with mixed:
            logits_NBC, halting_NB = self.model(self.ids_BT)
        loss = self.loss(logits_NBC, halting_NB, self.labels_B)
        loss.backward()
        self.update()
        return loss.detach()

    def moved(self) -> list[Tensor]:
        """Weights and averages after a few steps, made once."""
        for _ in range(STEPS_COMPARED):
            self.step()
        return [tensor.detach() for tensor in (*self.parameters, *self.shadows)]


def variants(*, autocast: bool, device: str = "cpu") -> Iterator[Variant]:
    """Ours first; each is compared with AdamW's default path."""
    torch.manual_seed(0)
    first = [p.detach().to(device) for p in Exits().parameters()] * 2
    peer = Loop(DEFAULT, autocast=autocast, device=device)
    truth = [tensor.clone() for tensor in peer.moved()]

    def error(loop: Loop) -> float:
        halves = RelativeError(), RelativeError()
        found = truth if loop is peer else loop.moved()
        for index, (mine, theirs, start) in enumerate(zip(found, truth, first, strict=True)):
            # The average moves far less than the weights, so it is a figure of its own.
            halves[index >= len(first) // 2].add(mine - start, theirs - start)
        values = [half.value for half in halves]
        return math.nan if any(map(math.isnan, values)) else max(values)

    for name in NAMES:
        loop = peer if name == DEFAULT else Loop(name, autocast=autocast, device=device)
        yield Variant(
            name,
            loop.step,
            lambda loop=loop: error(loop),
            TOLERANCES[autocast],  # type: ignore[misc]
        )


def section(*, rounds: int, device: str) -> Section:
    """In float32 and under bfloat16 autocast."""
    found = Section()
    for autocast in (False, True):
        precision = "bf16 autocast" if autocast else "fp32"
        announce(f"training step, {precision}")
        timed = measure(
            list(variants(autocast=autocast, device=device)),
            rounds=rounds,
            synchronize=synchronizer(device),
        )
        title = f"training step, MiniLM with exits, batch {BATCH} x {TOKENS}, {precision}"
        found.tables.append(timed_table(title, timed))
        what, ours = f"training step, {precision}", timed[0]
        fused = fastest([named(timed, FUSED), named(timed, FUSED_SWA)])
        default, best = WANTED[autocast]
        found.goals += [
            slower_by(what, "AdamW's default", named(timed, DEFAULT).over(ours), default),
            slower_by(what, "AdamW fused, clip, EMA", fused.over(ours), best),
        ]
    return found
