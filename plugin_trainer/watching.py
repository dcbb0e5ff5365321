"""Looking at one metric of an evaluation: which it is, and whether it is better than before."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from plugin_trainer.errors import PtrainError


def is_better(value: float, than: float, mode: str, *, min_delta: float = 0.0) -> bool:
    """Whether a value improves on another by more than `min_delta`; mode is "min" or "max"."""
    return value < than - min_delta if mode == "min" else value > than + min_delta


def watched(metrics: Mapping[str, float], name: str, *, setting: str) -> float:
    """The metric that a setting names.

    Raises PtrainError if there is none, with the one most like it and a list of all.
    """
    if name in metrics:
        return metrics[name]
    split, _, bare = name.partition("/")
    raw = f"{split.removesuffix('_ema')}/{bare}"
    is_averaged = any(known.startswith(f"{split}/") for known in metrics)
    if split.endswith("_ema") and is_averaged and raw in metrics:
        advice = [
            "with [ema] the best of the averaged weights is looked for as well: let what adds "
            f"'{raw}' add '{name}' too, or say ema = false"
        ]
    else:
        near = get_close_matches(name, list(metrics), n=1)
        advice = [f"did you mean '{found}'?" for found in near]
    raise PtrainError(
        f"{setting}: the evaluation gave no metric '{name}'",
        hint=[
            *advice,
            f"it gave: {', '.join(sorted(metrics))}",
        ],
    )
