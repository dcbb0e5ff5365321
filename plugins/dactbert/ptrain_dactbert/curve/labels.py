"""Names beside the curves of a panel: each where it covers no curve and no other name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# P places for a name, D dots of all curves

Point = tuple[float, float]
Array = np.ndarray[Any, Any]
Box = tuple[float, float, float, float]
"""Left, bottom, right, top on the screen."""

_GAP_DOTS = 7
_STEP_DOTS = 5
_ANCHORS = 16
_DISTANCES_POINTS = (12, 18, 26, 36, 50, 66, 84)
_DIRECTIONS = 16
_CLOSE_DOTS = 8
_NEAR_DOTS = 25
_NEAR_COST = 90
_CROSSED_COST = 20
_NEARER_COST = 200
_CELL_DOTS = 6
_MARKER_DOTS = 8
_COVERED_COST, _TAKEN_COST, _OUTSIDE_COST = 1e3, 5e4, 1e5


class Labels:
    """The names of one panel. What they must not cover is told first, then all are placed."""

    def __init__(self, axes: Axes, *, line: str) -> None:
        self._axes = axes
        self._line = line  # its colour
        self._curves: list[Sequence[Point]] = []
        self._names: list[tuple[str, Sequence[Point], str]] = []

    def avoid(self, curve: Sequence[Point]) -> None:
        """Cover no part of a curve, given by its corners in the units of the axes."""
        self._curves.append(curve)

    def add(self, name: str, anchors: Sequence[Point], *, colour: str) -> None:
        """Name something that is at any of these points."""
        self._names.append((name, anchors[:: math.ceil(len(anchors) / _ANCHORS)], colour))

    def place(self) -> None:
        """Put every name where it is free, as near as can be; the figure has its final size."""
        curves = [self._dots(curve) for curve in self._curves]
        taken: list[Box] = []
        # What has one place only is placed first.
        for name, anchors, colour in sorted(self._names, key=lambda item: len(item[1])):
            self._put(self._write(name, colour), anchors, curves, taken)

    def _write(self, name: str, colour: str) -> Any:
        paper = self._axes.get_facecolor()
        return self._axes.annotate(
            name,
            (0, 0),
            xytext=(0, 0),
            textcoords="offset points",
            color=colour,
            fontsize=8.5,
            horizontalalignment="center",
            verticalalignment="center",
            zorder=9,
            bbox={"facecolor": paper, "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )

    def _connect(self, start: Array, end: Array) -> None:
        """A line from a thing to its name, which lies on it."""
        from matplotlib.lines import Line2D

        ends = self._axes.transData.inverted().transform([start, end])
        line = Line2D(*ends.T, color=self._line, linewidth=0.6, zorder=8)
        self._axes.add_line(line)

    def _put(
        self, text: Any, anchors: Sequence[Point], curves: Sequence[Array], taken: list[Box]
    ) -> None:
        offsets = [
            (distance * math.cos(turn), distance * math.sin(turn))
            for distance in _DISTANCES_POINTS
            for turn in np.linspace(0, 2 * math.pi, _DIRECTIONS, endpoint=False)
        ]
        at = self._axes.transData.transform(np.array(anchors, dtype=float))
        dots_per_point = self._axes.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
        anchor_P2 = np.repeat(at, len(offsets), axis=0)
        offset_P2 = np.tile(offsets, (len(anchors), 1))
        centre_P2 = anchor_P2 + dots_per_point * offset_P2
        half = np.array(_size(text)) / 2 + _GAP_DOTS
        cost_P = np.hypot(*offset_P2.T) + np.repeat(_apart(at, curves), len(offsets))
        cost_P += _COVERED_COST * _count_inside(centre_P2, half, np.concatenate(curves))
        for box in taken:
            cost_P += _TAKEN_COST * _overlaps(centre_P2, half, anchor_P2, box)
        cost_P += _OUTSIDE_COST * _is_outside(centre_P2, half, self._axes.get_window_extent())
        cost_P += _NEARER_COST * self._is_nearer_to_another(centre_P2, anchor_P2, anchors)
        cost_P += _CROSSED_COST * _count_crossed(centre_P2, anchor_P2, np.concatenate(curves))
        best = int(cost_P.argmin())
        text.xy = anchors[best // len(offsets)]
        text.set_position(tuple(offset_P2[best]))
        way_2 = centre_P2[best] - anchor_P2[best]
        if (np.abs(way_2) > half + _CLOSE_DOTS).any():  # else there is no doubt
            start_2 = anchor_P2[best] + 6 * way_2 / np.hypot(*way_2)
            self._connect(start_2, centre_P2[best])
            # Names that come later stay off the line.
            line_S2 = np.linspace(start_2, centre_P2[best], 12)
            taken += [(x - 1, y - 1, x + 1, y + 1) for x, y in line_S2]
        taken.append((*(centre_P2[best] - half), *(centre_P2[best] + half)))

    def _is_nearer_to_another(
        self, centre_P2: Array, anchor_P2: Array, anchors: Sequence[Point]
    ) -> Array:
        """Whether at each place a name would stand nearer to another single point than its own."""
        others = [of[0] for _, of, _ in self._names if len(of) == 1 and of[0] != anchors[0]]
        if len(anchors) > 1 or not others:
            return np.zeros(len(centre_P2))
        at = self._axes.transData.transform(np.array(others, dtype=float))
        to_others_P = np.hypot(*(centre_P2[:, None] - at).transpose(2, 0, 1)).min(1)
        # The line to its own must not pass by another, either.
        steps_S11 = np.linspace(0, 1, 16)[:, None, None]
        lines_SP2 = anchor_P2 + steps_S11 * (centre_P2 - anchor_P2)
        passes_P = np.zeros(len(centre_P2), dtype=bool)
        for other in at:
            is_apart = np.hypot(*(anchor_P2[0] - other)) > _MARKER_DOTS
            passes_P |= is_apart & (np.hypot(*(lines_SP2 - other).T).min(1) < _MARKER_DOTS)
        nearer: Array = (to_others_P < np.hypot(*(centre_P2 - anchor_P2).T)) | passes_P
        return nearer

    def _dots(self, curve: Sequence[Point]) -> Array:
        """Points on the screen so close together that no name fits between."""
        corners = self._axes.transData.transform(np.array(curve, dtype=float).reshape(-1, 2))
        parts = [corners[:1]]
        for one, other in pairwise(corners):
            count = max(1, math.ceil(math.dist(one, other) / _STEP_DOTS))
            parts.append(np.linspace(one, other, count + 1)[1:])
        return np.concatenate(parts)


def _apart(at: Array, curves: Sequence[Array]) -> Array:
    """What it costs to name a curve at a point where another one is near."""
    distances = np.array([[np.hypot(*(curve - dot).T).min() for curve in curves] for dot in at])
    # The nearest curve is the one that is named.
    second = np.sort(distances, axis=1)[:, min(1, len(curves) - 1)]
    costs: Array = _NEAR_COST * (1 - np.minimum(second, _NEAR_DOTS) / _NEAR_DOTS)
    return costs


def _count_inside(centre_P2: Array, half: Array, dots_D2: Array) -> Array:
    """How many dots a name would cover at each place."""
    near_PD = (np.abs(centre_P2[:, None, 0] - dots_D2[:, 0]) < half[0]) & (
        np.abs(centre_P2[:, None, 1] - dots_D2[:, 1]) < half[1]
    )
    counts: Array = near_PD.sum(1)
    return counts


def _overlaps(centre_P2: Array, half: Array, anchor_P2: Array, box: Box) -> Array:
    """Whether a name, or the line from it to its anchor, would cross one that is there already."""
    low, high = np.array(box[:2]), np.array(box[2:])
    name_P = ((centre_P2 - half < high) & (centre_P2 + half > low)).all(1)
    lines_PS2 = centre_P2[:, None] + np.linspace(0, 1, 8)[:, None] * (
        anchor_P2[:, None] - centre_P2[:, None]
    )
    line_P = ((lines_PS2 > low) & (lines_PS2 < high)).all(2).any(1)
    either: Array = name_P | line_P
    return either


def _count_crossed(centre_P2: Array, anchor_P2: Array, dots_D2: Array) -> Array:
    """How often the line from each name to its anchor meets a curve, but for near the anchor."""
    cells_D2 = np.unique((dots_D2 // _CELL_DOTS).astype(int), axis=0)
    crossed = np.zeros(cells_D2.max(0) + 1, dtype=bool)
    crossed[tuple(cells_D2.T)] = True
    way_P2 = anchor_P2 - centre_P2
    length_P = np.hypot(*way_P2.T)
    # From the name to twelve dots before the anchor, whose own curve is met there.
    ends_P = np.maximum(0, 1 - 12 / length_P)
    steps_PS = np.linspace(0, 1, 24) * ends_P[:, None]
    cells_PS2 = (centre_P2[:, None] + steps_PS[..., None] * way_P2[:, None]) // _CELL_DOTS
    cells_PS2 = cells_PS2.astype(int).clip(0, np.array(crossed.shape) - 1)
    counts: Array = crossed[cells_PS2[..., 0], cells_PS2[..., 1]].sum(1)
    return counts


def _is_outside(centre_P2: Array, half: Array, panel: Any) -> Array:
    low, high = centre_P2 - half, centre_P2 + half
    beyond_P2 = (low < np.array([panel.x0, panel.y0])) | (high > np.array([panel.x1, panel.y1]))
    return np.asarray(beyond_P2.any(1))


def _size(text: Any) -> Point:
    """Width and height of a text in dots, without the line from it to its anchor."""
    from matplotlib.text import Text

    text.get_window_extent()
    box = Text.get_window_extent(text)
    return box.width, box.height
