"""Clipping, AdamW and the moving average: in one pass, and in torch's passes."""

from __future__ import annotations

import torch

from plugin_trainer.ops.bench import step
from plugin_trainer.ops.bench.interleaved import Timed, measure
from plugin_trainer.ops.bench.shapes import LISTS

from .device import announce, synchronizer
from .results import Section, fastest, named, share_of_probe, slower_by, timed_table

LARGE = ("BERT-base", "MiniLM")


def section(*, rounds: int, device: str) -> Section:
    """Every form at every size."""
    found = Section()
    for name in LISTS:
        timed = _measured(name, torch.float32, rounds, device)
        found.tables.append(timed_table(f"clip + AdamW + EMA, {name}, float32", timed))
        what, ours = f"fused step, {name}, fp32", timed[0]
        best = named(timed, step.BEST).over(ours)
        if name in LARGE:
            default = named(timed, step.DEFAULT).over(ours)
            found.goals += [
                share_of_probe(what, ours, 0.95 if device == "cpu" else 0.90),
                slower_by(what, "the best of torch", best, 1.3 if device == "cpu" else 1.25),
                slower_by(what, "AdamW's default", default, 3.0 if name == "BERT-base" else 4.0),
            ]
        else:
            wanted = 5.0 if device != "cpu" else 4.0 if name.startswith("1 M") else 50.0
            found.goals.append(slower_by(what, "the best of torch", best, wanted))
    for name in LARGE:
        timed = _measured(name, torch.bfloat16, rounds, device)
        found.tables.append(
            timed_table(f"clip + AdamW + EMA, {name}, bfloat16, float32 average", timed)
        )
        # An average that stands still is not the same work.
        peers = [one for one in timed[1:] if one.name != step.STANDS_STILL]
        found.goals.append(
            slower_by(
                f"fused step, {name}, bf16",
                "the best of torch",
                fastest(peers).over(timed[0]),
                2.0 if name == "BERT-base" else 2.5,
            )
        )
    return found


def _measured(name: str, dtype: torch.dtype, rounds: int, device: str) -> list[Timed]:
    announce(f"step, {name}, {dtype}")
    work = step.Work(LISTS[name], dtype=dtype, device=device)
    return measure(
        [step.ours(work), *step.peers(work)],
        rounds=rounds,
        probe=work.probe() if name in LARGE else None,
        synchronize=synchronizer(device),
    )
