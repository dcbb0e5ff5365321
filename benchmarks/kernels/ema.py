"""The moving average: models of three sizes and many small tensors, float32 and bfloat16."""

from __future__ import annotations

import torch

from plugin_trainer.ops.bench import ema
from plugin_trainer.ops.bench.interleaved import measure
from plugin_trainer.ops.bench.shapes import LISTS

from .device import announce, synchronizer
from .results import Section, fastest, named, share_of_probe, slower_by, timed_table

LARGE = ("BERT-base", "MiniLM")
OTHERS_FORMS = {"Lightning's": ema.LIGHTNING, "Composer's": ema.COMPOSER}


def section(*, rounds: int, device: str) -> Section:
    """Every form at every size."""
    found = Section()
    for name in LISTS:
        _float32(found, name, rounds, device)
    for name in LARGE:
        _bfloat16(found, name, rounds, device)
    return found


def _float32(found: Section, name: str, rounds: int, device: str) -> None:
    announce(f"EMA, {name}, float32")
    work = ema.Work(LISTS[name], device=device)
    timed = measure(
        [ema.ours(work), *ema.peers(work)],
        rounds=rounds,
        probe=work.probe() if name in LARGE else None,
        synchronize=synchronizer(device),
    )
    found.tables.append(timed_table(f"EMA, {name}, float32", timed))
    what, ours = f"EMA, {name}, fp32", timed[0]
    lerp = named(timed, ema.FOREACH_LERP).over(ours)
    if name in LARGE:
        found.goals.append(share_of_probe(what, ours, 0.97 if device == "cpu" else 0.90))
        found.goals.append(slower_by(what, "`_foreach_lerp_`", lerp, 1.0))
        for whose, row in OTHERS_FORMS.items():
            over = named(timed, row).over(ours)
            found.goals.append(slower_by(what, f"{whose} form", over, 9.0))
    else:
        wanted = 5.0 if device != "cpu" else 2.0 if name.startswith("1 M") else 8.0
        found.goals.append(slower_by(what, "`_foreach_lerp_`", lerp, wanted))


def _bfloat16(found: Section, name: str, rounds: int, device: str) -> None:
    announce(f"EMA, {name}, bfloat16")
    work = ema.Work(LISTS[name], dtype=torch.bfloat16, device=device)
    timed = measure(
        [ema.ours(work), *ema.peers_16_bit(work)],
        rounds=rounds,
        probe=work.probe(),
        synchronize=synchronizer(device),
    )
    found.tables.append(timed_table(f"EMA, {name}, bfloat16 weights, float32 average", timed))
    # Our own reference, which is slower code for the same work, is no peer; its row stands there.
    peers = [one for one in timed[1:] if one.name != ema.REFERENCE]
    found.goals.append(
        slower_by(
            f"EMA, {name}, bf16 to fp32",
            "the best eager way",
            fastest(peers).over(timed[0]),
            2.5 if name == "BERT-base" else 5.0,
        )
    )
