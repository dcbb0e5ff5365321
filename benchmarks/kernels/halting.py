"""The halting loss with its gradients: time, memory, and how right it is where logits are large."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from plugin_trainer.ops.bench import halting
from plugin_trainer.ops.bench.interleaved import Timed, Variant, measure

from .device import announce, synchronizer
from .memory import peak_bytes
from .results import Goal, Section, Table, at_most, fastest, named, slower_by, timed_table

Size = tuple[int, int, int]

# At least how many times as long as ours: the paper's loop, the best eager form, the best compiled.
WANTED: dict[Size, tuple[float, float, float]] = {
    (12, 32, 2): (15, 6, 3.5),
    (12, 256, 3): (15, 6, 3.5),
    (12, 4096, 9): (20, 12, 3.5),
    (12, 8192, 32): (7, 2.2, 1.5),
    (6, 64, 1000): (7, 3, 2.3),
}
WANTED_ON_A_GPU = (20.0, 0.0, 5.0)
SCALES = (1.0, 4.0, 15.0)
MOST_ERROR = 5e-7
# Losses and counts are scalars, and each row's label has a number between the two passes.
ALLOWANCE_BYTES, ALLOWANCE = 4096, 0.02
BATCHES, EXTREMES = 50, (40.0, 80.0, 200.0)


def section(*, rounds: int, device: str) -> Section:
    """Time and memory at every size; errors at three scales; what is finite at extreme ones."""
    found = Section()
    memory: list[list[str]] = []
    for size in halting.SIZES:
        announce(f"halting loss, {size}")
        work = halting.Work(size, device=device)
        variants = [
            halting.ours(work),
            halting.ours_with_outputs(work),
            *halting.peers(work),
            *halting.compiled_peers(work),
        ]
        timed = measure(variants, rounds=rounds, synchronize=synchronizer(device))
        found.tables.append(timed_table(f"halting loss and gradients, {size}", timed))
        found.goals += _times(size, timed, device)
        memory += _memory(found, size, work, variants, device)
    heads = ("MiB at the peak", "MiB of gradients", "times")
    found.tables.append(Table("memory of the halting loss and its gradients", heads, memory))
    _errors(found, device)
    _extremes(found, device)
    return found


def _times(size: Size, timed: Sequence[Timed], device: str) -> list[Goal]:
    ours, what = timed[0], f"halting loss, {size}"
    eager = [one for one in timed[2:] if not one.name.startswith("compiled")]
    compiled = [one for one in timed[2:] if one.name.startswith("compiled")]
    overs = (
        ("the paper's loop", named(timed, halting.LOOP).over(ours)),
        ("the best eager form", fastest(eager).over(ours)),
        ("the best compiled form", fastest(compiled).over(ours)),
    )
    wanted = WANTED[size] if device == "cpu" else WANTED_ON_A_GPU
    return [
        slower_by(what, peer, over, least)
        for (peer, over), least in zip(overs, wanted, strict=True)
        if least
    ]


def _memory(
    found: Section, size: Size, work: halting.Work, variants: Sequence[Variant], device: str
) -> list[list[str]]:
    by_logits, by_halting = 4 * work.logits_NRC.numel(), 4 * work.halting_NR.numel()
    gradients = by_logits + by_halting
    outputs = 4 * (work.logits_NRC[0].numel() + 2 * work.halting_NR.numel())
    allowed = {halting.OURS: gradients, halting.WITH_OUTPUTS: gradients + outputs}
    runs = {variant.name: variant.run for variant in variants}
    error = work.error(halting.in_place(work)())
    if error <= halting.TOLERANCE:
        runs["ours, in place"] = halting.in_place(work)
        allowed["ours, in place"] = by_halting
    rows = []
    for name, run in runs.items():
        peak = peak_bytes(run, device=device)
        cells = (f"{peak / 2**20:.3f}", f"{gradients / 2**20:.3f}", f"{peak / gradients:.2f}")
        rows.append([f"{size}: {name}", *cells])
        if name in allowed:
            over = peak - allowed[name]
            found.goals.append(
                Goal(
                    f"halting loss, {size}: memory of {name}",
                    "the gradient by u" if "place" in name else "gradients and outputs",
                    "no more" if over <= 0 else f"{over} bytes more",
                    over <= ALLOWANCE_BYTES + ALLOWANCE * gradients,
                )
            )
    if error > halting.TOLERANCE or math.isnan(error):
        what = f"halting loss, {size}: in place"
        found.goals.append(at_most(what, error, halting.TOLERANCE))
    return rows


def _errors(found: Section, device: str) -> None:
    rows, worst = [], 0.0
    for size in halting.SIZES:
        for scale in SCALES:
            work = halting.Work(size, scale=scale, device=device)
            errors = [variant.error() for variant in (halting.ours(work), *halting.peers(work))]
            worst = max(worst, math.inf if math.isnan(errors[0]) else errors[0])
            rows.append([f"{size}, logits x {scale:g}", *(f"{error:.1e}" for error in errors)])
    heads = ("ours", halting.LOOP, "all blocks at once", halting.LOG_SPACE)
    title = "relative error of the gradients, against log space in float64"
    found.tables.append(Table(title, heads, rows))
    found.goals.append(at_most("halting loss: error at any scale", worst, MOST_ERROR))


def _extremes(found: Section, device: str) -> None:
    losses = {
        "ours": halting.our_loss,
        halting.LOOP: halting.paper_loop,
        "all blocks at once": halting.all_at_once,
        halting.LOG_SPACE: halting.log_space,
    }
    rows, ours = [], 0
    for scale in EXTREMES:
        bad = dict.fromkeys(losses, 0)
        for seed in range(BATCHES):
            inputs = _batch(seed, scale, device)
            for name, loss in losses.items():
                bad[name] += not _all_finite(loss, inputs)
        ours += bad["ours"]
        rows.append([f"logits x {scale:g}", *(f"{count} of {BATCHES}" for count in bad.values())])
    title = "batches of (12, 32, 3) with a loss or gradient that is not finite"
    found.tables.append(Table(title, tuple(losses), rows))
    found.goals.append(at_most("halting loss: batches not finite", ours, 0))


def _batch(seed: int, scale: float, device: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator, device=device)
        return (scale * drawn).requires_grad_()

    labels = torch.randint(3, (32,), generator=generator, device=device)
    return normal(12, 32, 3), normal(12, 32), labels


def _all_finite(loss: halting.Loss, inputs: tuple[Tensor, Tensor, Tensor]) -> bool:
    value = loss(*inputs)
    found = (value, *torch.autograd.grad(value, inputs[:2]))
    return all(bool(tensor.isfinite().all()) for tensor in found)
