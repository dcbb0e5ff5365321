"""The panels by time: accuracy by the milliseconds that a row takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ptrain_dactbert.curve.labels import Labels
from ptrain_dactbert.curve.panels import in_percent
from ptrain_dactbert.curve.stopwatch import UNMODIFIED
from ptrain_dactbert.curve.theme import BATCH_STYLES, P95_STYLE, PROMISE_MARKERS, Theme, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Figures = Mapping[str, Any]


def by_time(axes: Axes, document: Figures, theme: Theme, *, sizes: Sequence[str]) -> Labels:
    """Accuracy by the median time a row, from the earliest exits to all blocks; of one batch size
    with the p95, the promises of --exit and the smaller baselines.
    """
    labels = Labels(axes, line=theme.ink)
    levels = _levels(document)
    for number, size in enumerate(sizes):
        linestyle, marker = BATCH_STYLES[number % len(BATCH_STYLES)]
        colour = theme.colours[number % len(theme.colours)]
        timed = document["timing"]["batches"][size]
        style = {"linestyle": linestyle, "marker": marker, "markersize": 5, "color": colour}
        name = f"batch {size}" if len(sizes) > 1 else "median"
        _by_level(axes, labels, timed, levels, "median_ms", name=name, style=style)
        if len(sizes) == 1:
            style = {**P95_STYLE, "color": theme.colours[1]}
            _by_level(axes, labels, timed, levels, "p95_ms", name="p95", style=style)
            for level, accuracy in levels.items():
                labels.add(level, [(timed[level]["median_ms"], accuracy)], colour=theme.ink)
            _other_times(axes, labels, document, timed, theme)
    axes.margins(y=0.15)
    axes.set_xlim(left=0)
    axes.set_xlabel("milliseconds a row" + (", the median" if len(sizes) > 1 else ""))
    in_percent(axes)
    which = f"batch {sizes[0]}" if len(sizes) == 1 else "larger batches"
    axes.set_title(f"Accuracy by time, {which}")
    return labels


def _levels(document: Figures) -> dict[str, float]:
    """The accuracy at each level that was timed for its mean blocks, and of all blocks."""
    recipe = document["recipe"]
    timed = next(iter(document["timing"]["batches"].values()))
    accuracies = {
        f"{depth:g} blocks": at["accuracy"]["mean"]
        for depth, at in zip(document["depths"], recipe["at_depth"]["agreement"], strict=True)
        if at is not None
    }
    accuracies[UNMODIFIED] = recipe["full"]["accuracy"]["mean"]
    return {name: accuracy for name, accuracy in accuracies.items() if name in timed}


def _by_level(
    axes: Axes,
    labels: Labels,
    timed: Figures,
    levels: Mapping[str, float],
    time: str,
    *,
    name: str,
    style: Mapping[str, Any],
) -> None:
    """A line through the levels; `time` is the key of the figure."""
    points = [(timed[level][time], accuracy) for level, accuracy in levels.items()]
    axes.plot(*zip(*points, strict=True), **style)
    labels.avoid(points)
    labels.add(name, _between(points), colour=style["color"])


def _other_times(
    axes: Axes, labels: Labels, document: Figures, timed: Figures, theme: Theme
) -> None:
    """The promises of --exit, and the plain baselines of fewer blocks."""
    promised = document["recipe"]["promised"].items()
    known = [(exit_, PROMISE_MARKERS[exit_], its["accuracy"]) for exit_, its in promised]
    known += [(group["label"], "P", group["full"]["accuracy"]) for group in document["baselines"]]
    for name, marker, accuracy in known:
        if name in timed:
            at = (timed[name]["median_ms"], accuracy["mean"])
            colour = theme.ink if marker == "P" else theme.colours[0]
            axes.plot(*at, marker, color=colour, markeredgecolor=theme.ink, markersize=6, zorder=6)
            labels.avoid([at])
            labels.add(plain(name), [at], colour=theme.ink)


def _between(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points along a line through the given ones, from halfway between the first two."""
    return [
        (x + (to_x - x) * part / 8, y + (to_y - y) * part / 8)
        for (x, y), (to_x, to_y) in pairwise(points)
        for part in (3, 4, 5)
    ] or list(points)
