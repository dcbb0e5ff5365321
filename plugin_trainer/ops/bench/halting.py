"""The halting loss and its gradients: ours, the paper's loop, and the fastest that torch can do.

All compute CE(a_N) + tau * mean of sum_n h_n for one halting decision a row, and the gradients by
both kinds of logits, which are no leaves: nothing is copied into a `.grad`.
"""

# N blocks, R rows, C classes

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from plugin_trainer.ops.bench.interleaved import Variant, relative_error
from plugin_trainer.ops.halting import halting_loss

TAU = 0.1
# The first two of (N, R, C) classify sentences, the third tokens; the others many classes.
SIZES = [(12, 32, 2), (12, 256, 3), (12, 4096, 9), (12, 8192, 32), (6, 64, 1000)]

OURS = "ours"
WITH_OUTPUTS = "ours, with answer, p and exit weights"
LOOP = "the paper's loop"
LOG_SPACE = "label's row in log space"
TOLERANCE, PEERS_TOLERANCE = 5e-7, 1e-5

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Work:
    """Logits of both kinds and labels.

    scale  of all logits; at 15 most probabilities are 0 or 1 to many digits
    """

    def __init__(
        self, size: tuple[int, int, int], *, scale: float = 1.0, device: str = "cpu"
    ) -> None:
        blocks, rows, classes = size
        generator = torch.Generator(device).manual_seed(0)

        def logits(*shape: int) -> Tensor:
            drawn = torch.randn(shape, generator=generator, device=device)
            return (scale * drawn).requires_grad_()

        self.logits_NRC = logits(blocks, rows, classes)
        self.halting_NR = logits(blocks, rows)
        self.labels_R = torch.randint(classes, (rows,), generator=generator, device=device)
        z_NRC, u_NR = (
            x.detach().double().requires_grad_() for x in (self.logits_NRC, self.halting_NR)
        )
        self.truth = torch.autograd.grad(log_space(z_NRC, u_NR, self.labels_R), (z_NRC, u_NR))

    def gradients(self, loss: Loss) -> tuple[Tensor, ...]:
        """Forward and backward."""
        inputs = (self.logits_NRC, self.halting_NR)
        return torch.autograd.grad(loss(*inputs, self.labels_R), inputs)

    def error(self, gradients: tuple[Tensor, ...]) -> float:
        """The larger of the two gradients' errors, relative to float64 in log space."""
        errors = [relative_error([pair]) for pair in zip(gradients, self.truth, strict=True)]
        return math.nan if any(map(math.isnan, errors)) else max(errors)

    def variant(self, name: str, loss: Loss, *, tolerance: float = PEERS_TOLERANCE) -> Variant:
        """A way of computing loss and gradients, with its check."""

        def run() -> tuple[Tensor, ...]:
            return self.gradients(loss)

        return Variant(name, run, lambda: self.error(run()), tolerance)


def ours(work: Work) -> Variant:
    """This project's loss, and like the others nothing but the loss."""
    return work.variant(OURS, our_loss, tolerance=TOLERANCE)


def ours_with_outputs(work: Work) -> Variant:
    """With everything that it can return besides, for metrics: what it does unless told."""

    def loss(logits_NRC: Tensor, halting_NR: Tensor, labels_R: Tensor) -> Tensor:
        return halting_loss(logits_NRC, halting_NR, labels_R, tau=TAU).loss

    return work.variant(WITH_OUTPUTS, loss, tolerance=TOLERANCE)


def log_space_eager(work: Work) -> Variant:
    """The best form for eager torch."""
    return work.variant(LOG_SPACE, log_space)


def peers(work: Work) -> list[Variant]:
    """The loop and the two forms without one."""
    return [
        work.variant(LOOP, paper_loop),
        work.variant("all blocks at once", all_at_once),
        log_space_eager(work),
    ]


def compiled_peers(work: Work) -> list[Variant]:
    """The same through torch.compile, for these sizes alone."""
    return [
        work.variant(f"compiled: {name}", torch.compile(loss, fullgraph=True, dynamic=False))
        for name, loss in ((LOOP, paper_loop), (LOG_SPACE, log_space))
    ]


def our_loss(logits_NRC: Tensor, halting_NR: Tensor, labels_R: Tensor) -> Tensor:
    """As a training loop calls it that wants no by-products."""
    return halting_loss(logits_NRC, halting_NR, labels_R, tau=TAU, outputs=()).loss


def in_place(work: Work) -> Callable[[], tuple[Tensor, ...]]:
    """Ours, which writes the gradient by the logits over a copy of them that is made now."""
    logits_NRC = work.logits_NRC.detach().clone()

    def run() -> tuple[Tensor, ...]:
        labels_R, halting_NR = work.labels_R, work.halting_NR
        loss = halting_loss(logits_NRC, halting_NR, labels_R, tau=TAU, outputs=(), inplace=True)
        return logits_NRC, *torch.autograd.grad(loss.loss, halting_NR)

    return run


def paper_loop(logits_NRC: Tensor, halting_NR: Tensor, labels_R: Tensor) -> Tensor:
    """As the equations stand in the paper, block by block."""
    reached_R = torch.ones_like(halting_NR[0])
    answer_RC = torch.zeros_like(logits_NRC[0])
    price_R = torch.zeros_like(reached_R)
    for logits_RC, halting_R in zip(logits_NRC, halting_NR, strict=True):
        reached_R1 = reached_R[:, None]
        answer_RC = reached_R1 * logits_RC.softmax(-1) + (1 - reached_R1) * answer_RC
        go_on_R = halting_R.sigmoid()
        reached_R = reached_R * go_on_R
        price_R = price_R + go_on_R
    return F.nll_loss(answer_RC.log(), labels_R) + TAU * price_R.mean()


def all_at_once(logits_NRC: Tensor, halting_NR: Tensor, labels_R: Tensor) -> Tensor:
    """The blocks' weights by cumulative products, and one weighted sum of their answers."""
    go_on_NR = halting_NR.sigmoid()
    reached_NR = torch.cat([torch.ones_like(go_on_NR[:1]), go_on_NR[:-1].cumprod(0)])
    kept_NR = (1 - reached_NR).roll(-1, 0)  # what later blocks leave of block n
    kept_NR = torch.cat([kept_NR[:-1], torch.ones_like(kept_NR[:1])]).flip(0).cumprod(0).flip(0)
    weight_NR = reached_NR * kept_NR
    answer_RC = (weight_NR[..., None] * logits_NRC.softmax(-1)).sum(0)
    return F.nll_loss(answer_RC.log(), labels_R) + TAU * go_on_NR.sum(0).mean()


def log_space(logits_NRC: Tensor, halting_NR: Tensor, labels_R: Tensor) -> Tensor:
    """Only the label's probability enters the loss, and everything stays a logarithm."""
    blocks, rows = halting_NR.shape
    log_y_NR = -F.cross_entropy(
        logits_NRC.flatten(0, 1), labels_R.repeat(blocks), reduction="none"
    ).view(blocks, rows)
    log_p_NR = F.logsigmoid(halting_NR[:-1]).cumsum(0)
    log_kept_NR = torch.log(-torch.expm1(log_p_NR)).flip(0).cumsum(0).flip(0)
    log_w_NR = F.pad(log_p_NR, (0, 0, 1, 0)) + F.pad(log_kept_NR, (0, 0, 0, 1))
    task = -torch.logsumexp(log_w_NR + log_y_NR, 0).mean()
    return task + TAU * halting_NR.sigmoid().sum(0).mean()
