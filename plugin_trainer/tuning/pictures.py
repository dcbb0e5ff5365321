"""Pictures of a study: its history, which parameters mattered, and the front of two objectives.

Shades of grey and shapes alone tell things apart, so that a print in black and white loses nothing.
"""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from plugin_trainer.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox
    from optuna.importance import BaseImportanceEvaluator
    from optuna.trial import FrozenTrial

    from plugin_trainer.tuning.objectives import Objective
    from plugin_trainer.tuning.studies import Stage, Trial

DARK, MIDDLE, LIGHT = "0.1", "0.45", "0.75"
"""Greys, from 0, black, to 1, white."""

DOTS_PER_INCH = 150
WIDTH_INCHES = 7.0

RING_RADIUS_POINTS = 6
"""Of the ring around the winner."""
GAP_DOTS = 6
"""Between two numbers, so that 21 and 9 are not read as 219."""

FEWEST_FOR_IMPORTANCE = 6
"""Of fewer finished trials, no three would be left to compare with the rest."""
WANTED_AT_THE_TOP = 5
"""How many trials PED-ANOVA should have among the best ones, by its authors' advice."""
LEAST_TOP, MOST_TOP = 0.1, 0.5

FAR_APART = 20.0
"""Values whose largest is so many times their smallest are drawn on a logarithmic axis."""


def draw_pictures(stage: Stage) -> tuple[list[Path], list[str]]:
    """Draw what can be drawn of one stage as PNG files into its folder.

    Returns the files, and a line for each picture that there is not, which says why. Raises
    MissingExtra if matplotlib is not installed.
    """
    drawn: list[Path] = []
    left_out: list[str] = []
    for name, draw in (("history", history), ("importance", importance), ("front", front)):
        figure = draw(stage)
        if isinstance(figure, str):
            if figure:
                left_out.append(f"no {name}.png: {figure}")
            continue
        path = stage.folder / f"{name}.png"
        _save(figure, path)
        drawn.append(path)
    return drawn, left_out


# ---------------------------------------------------------------------------------------- history


def history(stage: Stage) -> Figure | str:
    """Every objective by trial, with the best so far, and the pruned and failed trials marked."""
    finished = [trial for trial in stage.trials if _is_drawn(trial)]
    if not finished:
        return "no trial has finished"
    objectives = stage.objectives
    figure = _figure(height=1.2 + 2.6 * len(objectives))
    panels = figure.subplots(len(objectives), sharex=True, squeeze=False)[:, 0]
    for number, (axes, objective) in enumerate(zip(panels, objectives, strict=True)):
        _draw_history(axes, stage, objective, number)
    panels[-1].set_xlabel("trial (number)")
    last = max(trial.number for trial in stage.trials)
    beside = max(0.5, 0.04 * last)
    panels[-1].set_xlim(-beside, last + beside)  # of one trial, too, the numbers are whole
    panels[-1].xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    handles = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper center", ncols=4, frameon=False
    )
    return figure


def _draw_history(axes: Axes, stage: Stage, objective: Objective, number: int) -> None:
    finished = [trial for trial in stage.trials if _is_drawn(trial)]
    numbers = [trial.number for trial in finished]
    values = [trial.values[number] for trial in finished]
    axes.scatter(numbers, values, s=26, color=DARK, zorder=3, label="finished")
    axes.step(
        [*numbers, max(trial.number for trial in stage.trials)],
        [*(best := list(_best_so_far(values, objective.mode))), best[-1]],
        where="post",
        color=MIDDLE,
        linewidth=1.5,
        zorder=2,
        label="best so far",
    )
    pruned = _pruned(stage)
    if pruned:
        axes.scatter(
            [trial.number for trial, _ in pruned],
            [value for _, value in pruned],
            s=30,
            marker="D",
            facecolors="white",
            edgecolors=MIDDLE,
            zorder=3,
            label="pruned, at its last report",
        )
    failed = [trial.number for trial in stage.trials if trial.state == "failed"]
    if failed:
        axes.scatter(
            failed,
            [0.03] * len(failed),
            s=36,
            marker="x",
            color=DARK,
            zorder=3,
            transform=axes.get_xaxis_transform(),
            clip_on=False,
            label="failed, without a value",
        )
        axes.margins(y=0.12)  # no value comes to stand beside the crosses
    _scale(axes, "y", [*values, *(value for _, value in pruned)])
    axes.set_ylabel(_axis_name(objective))


def _pruned(stage: Stage) -> list[tuple[Trial, float]]:
    """The pruned trials of a study with one objective, each with the value it reported last."""
    return [
        (trial, last)
        for trial in stage.trials
        if trial.state == "pruned"
        and trial.reports
        and math.isfinite(last := trial.reports[max(trial.reports)])
    ]


def _best_so_far(values: Sequence[float], mode: str) -> Iterator[float]:
    better = min if mode == "min" else max
    best = values[0]
    for value in values:
        best = better(best, value)
        yield best


# ------------------------------------------------------------------------------------- importance


def importance(stage: Stage) -> Figure | str:
    """How much each parameter decided which trials were among the best, for each objective."""
    shares = importances(stage)
    if isinstance(shares, str):
        return shares
    names = list(next(iter(shares.values())))
    names.sort(key=lambda name: sum(of[name] for of in shares.values()))
    figure = _figure(height=1.3 + 0.25 * len(names) * (1 + len(shares)))
    axes = figure.subplots()
    thickness = 0.8 / len(shares)
    for number, (objective, of) in enumerate(shares.items()):
        places = [place + 0.4 - (number + 0.5) * thickness for place in range(len(names))]
        bars = axes.barh(
            places,
            [100 * of[name] for name in names],
            height=thickness * 0.9,
            color=(MIDDLE, LIGHT)[number % 2],
            edgecolor=DARK,
            hatch=("", "///")[number % 2],
            label=objective,
        )
        axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set_yticks(range(len(names)), [_plain(name) for name in names])
    axes.set_xlim(0, 110)
    axes.set_xticks(range(0, 101, 20))
    top = round(100 * top_share(_count_finished(stage)))
    of_what = f" for {_plain(next(iter(shares)))}" if len(shares) == 1 else ""
    axes.set_xlabel(f"share in being among the best {top} %{of_what} (%, PED-ANOVA)")
    if len(shares) > 1:
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def importances(stage: Stage) -> dict[str, dict[str, float]] | str:
    """For each objective the share of each parameter, which add up to 1; or why there are none.

    PED-ANOVA (Watanabe, Bansal & Hutter, IJCAI 2023): how unlike the values of the best trials are
    to those of all, parameter by parameter. It needs numpy alone, where fANOVA needs scikit-learn,
    and takes parameters that only some trials have. Pruned trials do not count.
    """
    count = _count_finished(stage)
    if stage.optuna is None or count < FEWEST_FOR_IMPORTANCE:
        return f"it needs {FEWEST_FOR_IMPORTANCE} finished trials, and there are {count}"
    import optuna

    shares: dict[str, dict[str, float]] = {}
    for number, objective in enumerate(stage.objectives):
        values = {trial.values[number] for trial in stage.trials if _is_drawn(trial)}
        if len(values) == 1:
            return f"{objective.metric} is the same in every finished trial"
        with warnings.catch_warnings():
            # It warns that a target is taken as one to be low, as it is here, and that it is new.
            warnings.simplefilter("ignore")
            shares[objective.metric] = optuna.importance.get_param_importances(
                stage.optuna,
                evaluator=_ped_anova(top_share(count)),
                target=functools.partial(_as_a_loss, number=number, mode=objective.mode),
            )
    if not next(iter(shares.values())):
        return "no parameter was varied"
    return shares


def _ped_anova(top: float) -> BaseImportanceEvaluator:
    """PED-ANOVA for the best share of the trials, as this version of Optuna spells it."""
    from optuna.importance import PedAnovaImportanceEvaluator

    known = inspect.signature(PedAnovaImportanceEvaluator).parameters
    name = "target_quantile" if "target_quantile" in known else "baseline_quantile"
    made: BaseImportanceEvaluator = PedAnovaImportanceEvaluator(**{name: top})  # type: ignore[arg-type]
    return made


def _as_a_loss(trial: FrozenTrial, *, number: int, mode: str) -> float:
    value: float = trial.values[number]
    return value if mode == "min" else -value


def top_share(count: int) -> float:
    """Which share of so many trials are the best ones: a tenth of many, and never too few."""
    return max(LEAST_TOP, min(MOST_TOP, WANTED_AT_THE_TOP / count))


# ------------------------------------------------------------------------------------------ front


def front(stage: Stage) -> Figure | str:
    """The finished trials by two objectives, and those that no other beats in both, numbered."""
    if len(stage.objectives) != 2:
        many = len(stage.objectives)
        return f"a front of {many} objectives has no plane picture" if many > 2 else ""
    finished = [trial for trial in stage.trials if _is_drawn(trial)]
    if not finished:
        return "no trial has finished"
    best = [trial for trial in stage.front() if _is_drawn(trial)]
    first, second = stage.objectives
    figure = _figure(height=5.0)
    axes = figure.subplots()
    numbers_of_best = {trial.number for trial in best}
    others = [trial for trial in finished if trial.number not in numbers_of_best]
    xs, ys = [trial.values[0] for trial in best], [trial.values[1] for trial in best]
    if others:
        axes.scatter(
            [trial.values[0] for trial in others],
            [trial.values[1] for trial in others],
            s=26,
            facecolors="white",
            edgecolors=MIDDLE,
            zorder=2,
            label="another is better in both",
        )
    axes.step(
        xs,
        ys,
        # Of a lower-is-better x, a point rules all to its right; else all to its left.
        where="post" if first.mode == "min" else "pre",
        color=LIGHT,
        linewidth=1.5,
        zorder=1,
    )
    axes.scatter(xs, ys, s=36, color=DARK, zorder=3, label="the front, by trial number")
    winner = stage.winner()
    if winner is not None and _is_drawn(winner):
        axes.scatter(
            winner.values[0],
            winner.values[1],
            s=(2 * RING_RADIUS_POINTS) ** 2,
            facecolors="none",
            edgecolors=DARK,
            linewidths=1.2,
            zorder=3,
            label=f"trial {winner.number}, the winner",
        )
    _scale(axes, "x", [trial.values[0] for trial in finished])
    _scale(axes, "y", [trial.values[1] for trial in finished])
    axes.margins(0.1)
    axes.set_xlabel(_axis_name(first))
    axes.set_ylabel(_axis_name(second))
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    _number_points(figure, axes, best, around=finished, objectives=stage.objectives)
    return figure


def _number_points(
    figure: Figure,
    axes: Axes,
    numbered: Sequence[Trial],
    *,
    around: Sequence[Trial],
    objectives: Sequence[Objective],
) -> None:
    """Write a number beside each point, where it covers no point and no other number.

    One for which there is no such place within reach is left out.
    """
    from matplotlib.text import Text

    figure.draw_without_rendering()  # fixes where the axes are
    points_per_dot = 72 / DOTS_PER_INCH
    half = RING_RADIUS_POINTS / points_per_dot
    dots = axes.transData.transform([trial.values for trial in around])
    covered = [_box(x - half, y - half, x + half, y + half) for x, y in dots]
    for trial in numbered:
        at = (trial.values[0], trial.values[1])
        text = axes.annotate(
            str(trial.number),
            at,
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=9,
            horizontalalignment="center",
            verticalalignment="center",
            arrowprops={"arrowstyle": "-", "color": LIGHT, "linewidth": 0.7, "shrinkB": 3},
        )
        text.get_window_extent()  # puts it at its point; the next is without the line to there
        size = Text.get_window_extent(text)
        for x, y in _places(first_turn=_better_side(objectives)):
            box = size.translated(x / points_per_dot, y / points_per_dot)
            if _is_free(box, axes, covered):
                text.set_position((x, y))
                covered.append(box.padded(GAP_DOTS))
                break
        else:
            text.remove()


def _places(*, first_turn: int) -> Iterator[tuple[float, float]]:
    """Where a number may stand, in points from its own point: around it, then further away."""
    for distance in (14, 18, 25, 33, 44, 58, 76):
        for turn in (0, 1, -1, 2, -2, 3, -3, 4):
            angle = (first_turn + turn) * math.pi / 4
            yield distance * math.cos(angle), distance * math.sin(angle)


def _is_free(box: Bbox, axes: Axes, covered: Sequence[Bbox]) -> bool:
    inside = axes.get_window_extent()
    is_inside = inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1)
    return is_inside and not any(box.overlaps(other) for other in covered)


def _better_side(objectives: Sequence[Objective]) -> int:
    """Which way both objectives improve, in eighths of a turn from the right: nothing is there."""
    sides = {("min", "min"): 5, ("max", "min"): 7, ("max", "max"): 1, ("min", "max"): 3}
    return sides[objectives[0].mode, objectives[1].mode]


def _box(left: float, bottom: float, right: float, top: float) -> Bbox:
    from matplotlib.transforms import Bbox

    return Bbox.from_extents(left, bottom, right, top)


# ------------------------------------------------------------------------------------ all of them


def _figure(*, height: float) -> Figure:
    """A figure of its own, in inches: no window and no state that the program around it could have.

    Raises MissingExtra if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra(
            "pictures of a study need the package matplotlib",
            hint='install the extra: pip install "plugin-trainer[tune]"',
        ) from None
    return Figure(figsize=(WIDTH_INCHES, height), dpi=DOTS_PER_INCH, layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    """Write the picture beside, and move it into place: a viewer never meets a half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    figure.savefig(beside, format="png")
    beside.replace(path)


def _scale(axes: Axes, which: str, values: Sequence[float]) -> None:
    """A logarithmic axis where the values lie far apart."""
    if min(values) > 0 and max(values) > FAR_APART * min(values):
        axes.set(**{f"{which}scale": "log"})


def _is_drawn(trial: Trial) -> bool:
    return trial.state == "finished" and all(map(math.isfinite, trial.values))


def _count_finished(stage: Stage) -> int:
    return sum(map(_is_drawn, stage.trials))


def _axis_name(objective: Objective) -> str:
    better = "lower" if objective.mode == "min" else "higher"
    return f"{_plain(objective.metric)} ({better} is better)"


def _plain(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")
