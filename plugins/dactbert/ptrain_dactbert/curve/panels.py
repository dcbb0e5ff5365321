"""The panels of the picture: a rate by mean blocks, and accuracy by milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ptrain_dactbert.curve.labels import Labels
from ptrain_dactbert.curve.rules import RULES
from ptrain_dactbert.curve.stopwatch import UNMODIFIED
from ptrain_dactbert.curve.theme import (
    BATCH_STYLES,
    P95_STYLE,
    PROMISE_MARKERS,
    RULE_STYLES,
    Theme,
    plain,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Figures = Mapping[str, Any]


def by_blocks(axes: Axes, document: Figures, theme: Theme, *, rate: str) -> Labels:
    """Every rule by its mean blocks, the promises of --exit, and the baselines.

    rate  "accuracy" or "agreement"
    """
    from matplotlib.ticker import MaxNLocator

    recipe, labels = document["recipe"], Labels(axes, line=theme.ink)
    for number, (rule, curve) in enumerate(recipe["curves"].items()):
        colour = theme.colours[number]
        style = {"color": colour, "zorder": 4 - number / 10, **RULE_STYLES[rule]}
        _curve(axes, labels, curve, rate, name=RULES[rule], style=style, first_marker=3 * number)
    _band(axes, recipe["curves"]["agreement"], rate, colour=theme.colours[0])
    for group in document["baselines"]:
        if group["kind"] == "exits":
            _other_recipe(axes, labels, group, rate, theme)
        elif rate == "accuracy":  # another model has no last block to agree with
            _plain_baseline(axes, labels, group, theme)
            if group["num_blocks"] == document["num_blocks"]:
                mean = group["full"]["accuracy"]["mean"]
                axes.axhline(mean, color=theme.ink, linewidth=0.7, linestyle=(0, (1, 4)))
                labels.avoid([(1, mean), (document["num_blocks"], mean)])
    for exit_, figures in recipe["promised"].items():
        _promise(axes, labels, exit_, figures, rate, theme)
    axes.margins(y=0.12)  # room for names above the curves
    axes.set_xlabel("mean blocks run")
    axes.set_xlim(0.9, document["num_blocks"] + 0.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _in_percent(axes)
    axes.set_title("Accuracy" if rate == "accuracy" else "Agreement with the last block")
    return labels


def _curve(
    axes: Axes,
    labels: Labels,
    curve: Sequence[Figures | None],
    rate: str,
    *,
    name: str,
    style: Mapping[str, Any],
    first_marker: int = 0,
) -> None:
    points = [(at["blocks"]["mean"], at[rate]["mean"]) for at in curve if at is not None]
    if not points:
        return
    xs, ys = zip(*points, strict=True)
    axes.plot(
        xs,
        ys,
        markersize=4,
        markevery=(min(first_marker, len(xs) - 1), 10),
        markerfacecolor=axes.get_facecolor(),
        **style,
    )
    labels.avoid(points)
    # Near full depth all curves meet.
    labels.add(plain(name), points[: max(1, len(points) * 3 // 4)], colour=style["color"])


def _band(axes: Axes, curve: Sequence[Figures | None], rate: str, *, colour: str) -> None:
    known = [(at["blocks"]["mean"], *_range(at[rate])) for at in curve if at is not None]
    xs, lows, highs = zip(*known, strict=True)
    axes.fill_between(xs, lows, highs, color=colour, alpha=0.16, linewidth=0, zorder=1)


def _range(figure: Figures) -> tuple[float, float]:
    """The interval of one run, or how far the seeds lie apart."""
    return figure.get("low", figure["min"]), figure.get("high", figure["max"])


def _other_recipe(axes: Axes, labels: Labels, group: Figures, rate: str, theme: Theme) -> None:
    """Its knob, and its learned halting if it has any."""
    for rule, marker in (("agreement", "x"), ("delta", "^")):
        if rule in group["curves"]:
            style = {**RULE_STYLES[rule], "linewidth": 1.0, "marker": marker, "color": theme.ink}
            name = f"{group['label']}, {RULES[rule]}"
            curve = group["curves"][rule]
            _curve(axes, labels, curve, rate, name=name, style=style, first_marker=5)


def _plain_baseline(axes: Axes, labels: Labels, group: Figures, theme: Theme) -> None:
    blocks, figure = group["num_blocks"], group["full"]["accuracy"]
    low, high = _range(figure)
    mean = figure["mean"]
    axes.errorbar(
        [blocks],
        [mean],
        yerr=[[mean - low], [high - mean]],
        fmt="P",
        color=theme.ink,
        markersize=6,
        capsize=3,
        linewidth=1,
        zorder=5,
    )
    labels.avoid([(blocks, low), (blocks, high)])
    labels.add(plain(group["label"]), [(blocks, mean)], colour=theme.ink)


def _promise(
    axes: Axes, labels: Labels, exit_: str, figures: Figures, rate: str, theme: Theme
) -> None:
    blocks, figure = figures["blocks"], figures[rate]
    x, y = blocks["mean"], figure["mean"]
    axes.errorbar(
        [x],
        [y],
        xerr=[[x - blocks["min"]], [blocks["max"] - x]],
        fmt=PROMISE_MARKERS[exit_],
        color=theme.colours[0],
        markeredgecolor=theme.ink,
        markersize=11 if exit_ == "lossless" else 6,
        linewidth=1,
        zorder=6,
    )
    labels.avoid([(x, y)])
    labels.add(exit_, [(x, y)], colour=theme.ink)


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
    _in_percent(axes)
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


def _in_percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 3):g} %")
