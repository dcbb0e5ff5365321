"""The panels by mean blocks: accuracy, and agreement with the last block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ptrain_dactbert.curve.labels import Labels
from ptrain_dactbert.curve.rules import RULES
from ptrain_dactbert.curve.theme import (
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
    in_percent(axes)
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


def in_percent(axes: Axes) -> None:
    """Label the ticks of a rate as 87.5 %."""
    axes.yaxis.set_major_formatter(lambda value, _: f"{round(100 * value, 3):g} %")
