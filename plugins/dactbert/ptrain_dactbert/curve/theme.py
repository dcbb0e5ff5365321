"""How the picture looks: on light and on dark paper, and what tells curves apart without colour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Theme:
    """The colours of one version."""

    name: str
    paper: str
    ink: str
    faint: str
    colours: tuple[str, ...]

    @property
    def suffix(self) -> str:
        """What its files' names end with."""
        return "" if self.name == "light" else f"-{self.name}"

    def settings(self) -> Any:
        """The same for matplotlib."""
        ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
        paper = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
        return {
            **dict.fromkeys(ink, self.ink),
            **dict.fromkeys(paper, self.paper),
            "grid.color": self.faint,
            "grid.linewidth": 0.6,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 9,
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "svg.hashsalt": "ptrain",  # the same figures give the same file
        }


LIGHT = Theme(
    name="light",
    paper="#ffffff",
    ink="#1f2328",
    faint="#d8dee4",
    colours=("#0550ae", "#953800", "#116329", "#8250df"),
)
DARK = Theme(
    name="dark",
    paper="#0d1117",
    ink="#e6edf3",
    faint="#30363d",
    colours=("#79c0ff", "#ffa657", "#7ee787", "#d2a8ff"),
)

DASHED, DOTTED, DASH_DOTTED = (0, (6, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2))

RULE_STYLES: Mapping[str, Mapping[str, Any]] = {
    "agreement": {"linestyle": "-", "linewidth": 2.2},
    "entropy": {"linestyle": DASHED, "linewidth": 1.5},
    "patience": {"linestyle": DOTTED, "linewidth": 1.7, "marker": "s"},
    "delta": {"linestyle": DASH_DOTTED, "linewidth": 1.5, "marker": "^"},
}
PROMISE_MARKERS = {"1%": "o", "2%": "D", "lossless": "*"}
P95_STYLE: Mapping[str, Any] = {
    "linestyle": DOTTED,
    "marker": "s",
    "markersize": 4,
    "markerfacecolor": "none",
}
BATCH_STYLES = (("-", "o"), (DASHED, "s"), (DOTTED, "^"), (DASH_DOTTED, "D"))


def plain(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")
