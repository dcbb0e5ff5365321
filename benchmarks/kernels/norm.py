"""The norm of all gradients: how far it is off, whether threads change it, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from plugin_trainer.ops.bench.interleaved import Timed, Variant, in_pieces, measure
from plugin_trainer.ops.bench.shapes import LISTS, Shape
from plugin_trainer.ops.norm import grad_norm

from .device import announce, synchronizer
from .results import Goal, Section, at_most, timed_table

# One tensor of this size is where torch's norm on a CPU is furthest off.
SHAPES: dict[str, Sequence[Shape]] = {**LISTS, "one of 23 M": [(23_440_896,)]}
TOLERANCE, TORCHS_TOLERANCE = 1e-8, 1e-2


def section(*, rounds: int, device: str) -> Section:
    """Every size."""
    found = Section()
    for name, shapes in SHAPES.items():
        announce(f"gradient norm, {name}")
        gradients = make_gradients(shapes, device=device)
        timed = measure(variants(gradients), rounds=rounds, synchronize=synchronizer(device))
        found.tables.append(timed_table(f"gradient norm, {name}, float32", timed))
        found.goals += _goals(name, timed[0], gradients, device)
    return found


def make_gradients(shapes: Sequence[Shape], *, device: str = "cpu") -> list[Tensor]:
    """Normal numbers of these shapes."""
    generator = torch.Generator(device).manual_seed(0)
    return [torch.empty(shape, device=device).normal_(generator=generator) for shape in shapes]


def variants(gradients: Sequence[Tensor]) -> list[Variant]:
    """Ours, and torch's two functions, whose error is reported but not held against them."""
    pieces = (piece for gradient in gradients for (piece,) in in_pieces(gradient))
    truth = math.sqrt(sum(float(piece.double().square().sum()) for piece in pieces))
    parameters = [nn.Parameter(torch.empty_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()

    def variant(name: str, norm: Callable[[], Tensor], tolerance: float) -> Variant:
        return Variant(name, norm, lambda: abs(float(norm()) - truth) / truth, tolerance)

    return [
        variant("ours", lambda: grad_norm(gradients), TOLERANCE),
        variant("get_total_norm", lambda: get_total_norm(gradients), TORCHS_TOLERANCE),
        variant(
            "clip_grad_norm_, which also scales",
            lambda: clip_grad_norm_(parameters, 1.0),
            TORCHS_TOLERANCE,
        ),
    ]


def _goals(name: str, ours: Timed, gradients: Sequence[Tensor], device: str) -> list[Goal]:
    goals = [at_most(f"norm, {name}: relative error", ours.error, TOLERANCE)]
    if device == "cpu":
        same = norm_with_threads(gradients, 1) == norm_with_threads(gradients, 2)
        goals.append(
            Goal(
                f"norm, {name}: 1 and 2 threads",
                "the same bits",
                "the same" if same else "others",
                same,
            )
        )
    return goals


def norm_with_threads(gradients: Sequence[Tensor], count: int) -> float:
    """The norm as so many threads compute it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return float(grad_norm(gradients))
    finally:
        torch.set_num_threads(before)
