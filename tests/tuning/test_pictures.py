"""The pictures of a study: what is in them and where, and that nothing in them hides another."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from plugin_trainer.errors import MissingExtra
from plugin_trainer.tuning import pictures
from plugin_trainer.tuning.studies import open_study

from .studies_made import LOSS, LOSS_AND_DEPTH, make_study, one_stage, trial

pytestmark = pytest.mark.usefixtures("here")

ACCURACY = [{"metric": "val/accuracy", "mode": "max"}]


def points(axes, label: str) -> list[list[float]]:
    """Where the marks of one kind stand."""
    (found,) = [its for its in axes.collections if its.get_label().startswith(label)]
    return found.get_offsets().tolist()


def line(axes) -> list[float]:
    (best,) = axes.lines
    return list(best.get_ydata())


# ----------------------------------------------------------------------------------------- history


def test_the_history_has_every_kind_of_trial_at_its_place():
    stage = one_stage(
        [
            trial(5.0),
            trial(state="failed"),
            trial(2.0),
            trial(state="pruned", reports=[9.0, 7.0]),
            trial(3.0),
        ]
    )
    (axes,) = pictures.history(stage).axes
    assert points(axes, "finished") == [[0, 5.0], [2, 2.0], [4, 3.0]]
    assert points(axes, "pruned") == [[3, 7.0]]
    assert [x for x, _ in points(axes, "failed")] == [1]
    assert line(axes) == [5.0, 2.0, 2.0, 2.0]


def test_where_higher_is_better_the_best_so_far_climbs():
    stage = one_stage([trial(0.5), trial(0.9), trial(0.7)], objectives=ACCURACY)
    (axes,) = pictures.history(stage).axes
    assert line(axes) == [0.5, 0.9, 0.9, 0.9]
    assert axes.get_ylabel() == "val/accuracy (higher is better)"


def test_each_objective_has_a_panel_of_its_own():
    stage = one_stage([trial(1.0, 6.0), trial(2.0, 4.0)], objectives=LOSS_AND_DEPTH)
    loss, depth = pictures.history(stage).axes
    assert line(loss)[:2] == [1.0, 1.0]
    assert line(depth)[:2] == [6.0, 4.0]


@pytest.mark.parametrize("count", [1, 2, 30])
def test_trials_are_counted_in_whole_numbers(count):
    (axes,) = pictures.history(one_stage([trial(1.0 + n) for n in range(count)])).axes
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert ticks
    assert all(tick == round(tick) for tick in ticks)


@pytest.mark.parametrize(("values", "scale"), [([1.0, 2.0], "linear"), ([0.01, 2.0], "log")])
def test_values_far_apart_stand_on_a_logarithmic_axis(values, scale):
    stage = one_stage([trial(value) for value in values])
    (axes,) = pictures.history(stage).axes
    assert axes.get_yscale() == scale


# -------------------------------------------------------------------------------------- importance


def searched(objectives, count: int = 40):
    """Trials whose loss is decided by x, and whose depth by y."""
    draw = random.Random(0).uniform
    made = []
    for _ in range(count):
        x, y = draw(0, 100), draw(0, 100)
        values = (abs(x - 30), abs(y - 60))[: len(objectives)]
        made.append(trial(*values, params={"model_settings.x": x, "model_settings.y": y}))
    return one_stage(made, objectives=objectives)


def test_the_parameter_that_decides_has_the_largest_share():
    (shares,) = pictures.importances(searched(LOSS)).values()
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["model_settings.x"] > 0.8


def test_each_objective_has_shares_of_its_own():
    shares = pictures.importances(searched(LOSS_AND_DEPTH))
    assert shares["val/loss"]["model_settings.x"] > 0.8
    assert shares["val/depth"]["model_settings.y"] > 0.8


def test_where_higher_is_better_the_best_are_the_highest():
    made = []
    for number in range(20):
        # The highest five have x in common, and the lowest five y.
        x = 50.0 if number >= 15 else (number * 37.0) % 100
        y = 50.0 if number < 5 else (number * 61.0) % 100
        params = {"model_settings.x": x, "model_settings.y": y}
        made.append(trial(float(number), params=params))
    (shares,) = pictures.importances(one_stage(made, objectives=ACCURACY)).values()
    assert shares["model_settings.x"] > 0.8


def test_a_bar_is_as_long_as_its_share():
    stage = searched(LOSS)
    (shares,) = pictures.importances(stage).values()
    (axes,) = pictures.importance(stage).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(
        [100 * shares[name] for name in names]
    )


def test_of_too_few_trials_no_importance_is_made_up():
    made = [trial(float(n), params={"model_settings.x": float(n)}) for n in range(5)]
    drawn, left_out = pictures.draw_pictures(one_stage(made))
    assert [path.name for path in drawn] == ["history.png"]
    assert left_out == ["no importance.png: it needs 6 finished trials, and there are 5"]


def test_of_equal_trials_no_importance_is_made_up():
    made = [trial(1.0, params={"model_settings.x": float(n)}) for n in range(8)]
    _, left_out = pictures.draw_pictures(one_stage(made))
    assert "val/loss is the same in every finished trial" in left_out[0]


@pytest.mark.parametrize(("count", "best"), [(6, 3), (10, 5), (25, 5), (50, 5), (200, 20)])
def test_the_best_are_a_tenth_of_many_and_five_of_few(count, best):
    assert round(pictures.top_share(count) * count) == best


# ------------------------------------------------------------------------------------------- front


def crowded(count: int = 20):
    """A front whose points stand so close that numbers beside them would overlap."""
    draw = random.Random(1).uniform
    made = [trial(1 + n / 100 + draw(0, 0.005), 2 - n / 100) for n in range(count)]
    made += [trial(1.4 + draw(0, 1), 2 + draw(0, 1)) for _ in range(count)]
    return one_stage(made, objectives=LOSS_AND_DEPTH)


def test_the_front_is_apart_from_the_trials_that_others_beat():
    made = [trial(1.0, 5.0), trial(3.0, 5.5), trial(2.0, 3.0), trial(4.0, 1.0)]
    (axes,) = pictures.front(one_stage(made, objectives=LOSS_AND_DEPTH)).axes
    assert points(axes, "the front") == [[1.0, 5.0], [2.0, 3.0], [4.0, 1.0]]
    assert points(axes, "another is better") == [[3.0, 5.5]]
    assert points(axes, "trial 0, the winner") == [[1.0, 5.0]]
    assert [text.get_text() for text in axes.texts] == ["0", "2", "3"]


def test_no_number_of_the_front_covers_a_point_or_a_number():
    stage = crowded()
    figure = pictures.front(stage)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert len(boxes) == len(stage.front()) >= 20
    for number, box in enumerate(boxes):
        assert not any(box.padded(4).overlaps(other) for other in boxes[:number])
        inside = axes.transData.transform([one.values for one in stage.trials])
        assert not any(box.contains(x, y) for x, y in inside)


def test_the_line_of_the_front_never_claims_what_no_trial_reached():
    """Above the line, as it is drawn, some trial is at least as good; below it there is none."""
    for first, where in (("min", "post"), ("max", "pre")):
        objectives = [{"metric": "val/a", "mode": first}, {"metric": "val/b", "mode": "min"}]
        values = [(1.0, 3.0), (2.0, 1.0)] if first == "min" else [(1.0, 1.0), (2.0, 3.0)]
        name = f"study_{first}"
        make_study(name, [trial(*both) for both in values], objectives=objectives)
        (axes,) = pictures.front(open_study(name).stages[0]).axes
        assert axes.lines[0].get_drawstyle() == f"steps-{where}"


def test_a_front_of_three_objectives_is_said_to_have_no_picture():
    three = [*LOSS_AND_DEPTH, {"metric": "val/time", "mode": "min"}]
    _, left_out = pictures.draw_pictures(one_stage([trial(1.0, 2.0, 3.0)], objectives=three))
    assert any("front of 3 objectives" in line for line in left_out)


# ------------------------------------------------------------------------------------- all of them


def test_the_pictures_have_no_colour():
    stage = searched(LOSS_AND_DEPTH)
    for draw in (pictures.history, pictures.importance, pictures.front):
        canvas = FigureCanvasAgg(draw(stage))
        canvas.draw()
        red, green, blue, _ = np.moveaxis(np.asarray(canvas.buffer_rgba()), -1, 0)
        assert (red == green).all()
        assert (green == blue).all()
        assert red.min() < 60  # there is something in it


def test_the_files_are_whole_and_nothing_else_is_left():
    stage = searched(LOSS_AND_DEPTH)
    drawn, left_out = pictures.draw_pictures(stage)
    assert left_out == []
    assert sorted(path.name for path in stage.folder.glob("*.png")) == [
        *("front.png", "history.png", "importance.png")
    ]
    assert not list(stage.folder.glob(".*.part"))
    for path in drawn:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert content.endswith(b"IEND\xaeB`\x82")


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    for module in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"plugin-trainer\[tune\]"):
        pictures.draw_pictures(one_stage([trial(1.0)]))
