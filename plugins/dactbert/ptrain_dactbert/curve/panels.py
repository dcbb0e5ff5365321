"""The panels of the picture: a rate by mean blocks, and accuracy by milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ptrain_dactbert.curve.labels import Labels
from ptrain_dactbert.curve.rules import RULES
from ptrain_dactbert.curve.stopwatch import UNMODIFIED
from ptrain_dactbert.curve.theme import BATCH_STYLES, PROMISE_MARKERS, RULE_STYLES, Theme, plain
from ptrain_dactbert.curve.timing import REBATCHED

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
    # Of one run the band says it already.
    low, high = figure["min"], figure["max"]
    axes.errorbar(
        [x],
        [y],
        xerr=[[x - blocks["min"]], [blocks["max"] - x]],
        yerr=[[y - low], [high - y]],
        fmt=PROMISE_MARKERS[exit_],
        color=theme.colours[0],
        markeredgecolor=theme.ink,
        markersize=11 if exit_ == "lossless" else 6,
        linewidth=1,
        zorder=6,
    )
    labels.avoid([(x, low), (x, high)])
    labels.add(exit_, [(x, y)], colour=theme.ink)


def by_time(axes: Axes, document: Figures, theme: Theme, *, sizes: Sequence[str]) -> Labels:
    """The accuracy of the timed run by its median time a row; of one batch size with the p95."""
    labels = Labels(axes, line=theme.ink)
    for number, size in enumerate(sizes):
        linestyle, marker = BATCH_STYLES[number % len(BATCH_STYLES)]
        colour = theme.colours[number % len(theme.colours)]
        timed = document["timing"]["batches"][size]
        exits = _accuracies(document, timed)
        points = [(timed[name]["median_ms"], accuracy) for name, accuracy in exits.items()]
        points.sort()
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, linestyle=linestyle, marker=marker, color=colour, markersize=5)
        labels.avoid(points)
        if len(sizes) > 1:
            labels.add(f"batch {size}", _between(points), colour=colour)
            continue
        for name, accuracy in exits.items():
            ends = [(timed[name]["median_ms"], accuracy), (timed[name]["p95_ms"], accuracy)]
            axes.plot(*zip(*ends, strict=True), "-|", color=colour, linewidth=0.8, markersize=7)
            labels.avoid(ends)
            labels.add(plain(name), ends[:1], colour=theme.ink)
        for group in document["baselines"]:
            if group["label"] in timed:
                at = (timed[group["label"]]["median_ms"], group["runs"][0]["accuracy"]["mean"])
                axes.plot(*at, "P", color=theme.ink, markersize=6)
                labels.avoid([at])
                labels.add(plain(group["label"]), [at], colour=theme.ink)
    axes.margins(y=0.12)
    axes.set_xlim(left=0)
    axes.set_xlabel("median ms a row" + (", line to the p95" if len(sizes) == 1 else ""))
    _in_percent(axes)
    which = f"batch {sizes[0]}" if len(sizes) == 1 else "larger batches"
    axes.set_title(f"Accuracy by time, {which}")
    return labels


def _accuracies(document: Figures, timed: Figures) -> dict[str, float]:
    """Of the timed run at each timed level, and of all its blocks."""
    (run,) = [run for run in document["recipe"]["runs"] if run["name"] == document["timing"]["run"]]
    exits = {
        name: its["accuracy"] for name, its in timed.items() if "level" in its and name != REBATCHED
    }
    return {**exits, UNMODIFIED: run["full"]["accuracy"]["mean"]}


def _between(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points along a line through the given ones."""
    return [
        (x + (to_x - x) * part / 8, y + (to_y - y) * part / 8)
        for (x, y), (to_x, to_y) in pairwise(points)
        for part in range(9)
    ] or list(points)


def _in_percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 3):g} %")
