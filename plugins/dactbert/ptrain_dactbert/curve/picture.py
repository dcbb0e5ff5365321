"""The picture of a comparison: accuracy and agreement by mean blocks, and accuracy by time.

Dashes and markers alone tell curves apart, and each is named beside it; colours only help.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plugin_trainer.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ptrain_dactbert.curve.theme import Theme

Figures = Mapping[str, Any]

DOTS_PER_INCH = 150


def need_matplotlib() -> None:
    """Raise MissingExtra if it is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingExtra(
            "the picture of the curves needs the package matplotlib",
            hint='install the extra: pip install "ptrain-dactbert[curve]"',
        ) from None


def draw_pictures(document: Figures, folder: Path) -> list[Path]:
    """Draw curve.svg and curve.png, then a dark version of both. Raises MissingExtra."""
    need_matplotlib()
    import matplotlib

    from ptrain_dactbert.curve.theme import DARK, LIGHT

    written = []
    for theme in (LIGHT, DARK):
        with matplotlib.rc_context(theme.settings()):
            figure = draw(document, theme)
            for kind in ("svg", "png"):
                path = folder / f"curve{theme.suffix}.{kind}"
                beside = path.with_name(f".{path.name}.part")
                metadata = {"Date": None} if kind == "svg" else {}
                figure.savefig(beside, format=kind, metadata=metadata)
                beside.replace(path)
                written.append(path)
    return written


def draw(document: Figures, theme: Theme) -> Figure:
    """Two panels by mean blocks, and below them one or two by time if there are times."""
    from matplotlib.figure import Figure

    from ptrain_dactbert.curve.panels import by_blocks
    from ptrain_dactbert.curve.time_panels import by_time

    sizes = list(document["timing"]["batches"]) if "timing" in document else []
    height = 7.8 if sizes else 4.2
    figure = Figure(figsize=(9.0, height), dpi=DOTS_PER_INCH, layout="constrained")
    panels = figure.subplots(2 if sizes else 1, 2, squeeze=False)
    labels = [
        by_blocks(panels[0, 0], document, theme, rate="accuracy"),
        by_blocks(panels[0, 1], document, theme, rate="agreement"),
    ]
    if len(sizes) > 1:
        panels[1, 0].sharey(panels[1, 1])
    if sizes:
        labels.append(by_time(panels[1, 0], document, theme, sizes=sizes[:1]))
        if len(sizes) > 1:
            labels.append(by_time(panels[1, 1], document, theme, sizes=sizes[1:]))
        else:
            panels[1, 1].set_axis_off()
    figure.suptitle(_caption(document), fontsize=8.5, x=0.01, horizontalalignment="left")
    figure.draw_without_rendering()  # fixes where the panels are
    figure.set_layout_engine("none")  # and there they stay
    for of_panel in labels:
        of_panel.place()
    return figure


def _caption(document: Figures) -> str:
    from ptrain_dactbert.curve.theme import plain

    recipe = document["recipe"]
    seeds = len(recipe["runs"])
    what = f"least to greatest of {seeds} seeds" if seeds > 1 else "95 % interval of one run"
    alone = any(len(group["runs"]) == 1 for group in document["baselines"])
    bars = "; of a baseline of one run its 95 % interval" if alone and seeds > 1 else ""
    lines = [
        f"{recipe['label']}: {document['rows']} rows of the {document['split']} split. "
        f"Band and bars: {what}{bars}.",
        "Large markers: what --exit promises.",
    ]
    if "timing" in document:
        timing = document["timing"]
        threads = "1 thread" if timing["threads"] == 1 else f"{timing['threads']} threads"
        times = f" Times of {timing['run']}, {threads}, {timing['precision']}"
        lines[1] += times + ("; accuracy is that of all seeds." if seeds > 1 else ".")
    return plain("\n".join(lines))
